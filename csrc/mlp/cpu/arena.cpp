#include "mlp/cpu/arena.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <new>
#include <utility>

namespace fastnode {

namespace {

// A few freed blocks wait for the next solve: memory that comes fresh from the system costs a page
// fault for every 4 KiB, which is a tenth of a solve that takes half a millisecond.
class Shelf {
 public:
  char* take(int64_t& size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Block& each : blocks_) {
      if (each.memory && each.size >= size && each.size <= 2 * size) {
        size = each.size;
        return std::exchange(each.memory, nullptr);
      }
    }
    return nullptr;
  }

  void put(char* memory, int64_t size) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (size <= kLargest) {
        Block* place = std::find_if(blocks_, blocks_ + kBlocks,
                                    [](const Block& each) { return !each.memory; });
        if (place == blocks_ + kBlocks) place = blocks_ + next_++ % kBlocks;
        std::swap(place->memory, memory);
        place->size = size;
      }
    }
    std::free(memory);
  }

 private:
  static constexpr int64_t kLargest = int64_t(2) << 20;
  static constexpr unsigned kBlocks = 8;
  struct Block {
    char* memory = nullptr;
    int64_t size = 0;
  };
  std::mutex mutex_;
  Block blocks_[kBlocks];
  unsigned next_ = 0;
};

// Never destroyed: solves may end after it would be.
Shelf& shelf() {
  static Shelf* const one = new Shelf();
  return *one;
}

}  // namespace

Arena::~Arena() {
  if (memory_) shelf().put(memory_, size_);
}

void Arena::reserve(int64_t bytes, bool zeros) {
  size_ = round_up(std::max<int64_t>(bytes, 64), 64);
  memory_ = shelf().take(size_);
  if (!memory_) memory_ = static_cast<char*>(std::aligned_alloc(64, size_t(size_)));
  if (!memory_) throw std::bad_alloc();
#ifdef FASTNODE_POISON
  // Tests: numbers read before they were written show up as NaN.
  std::memset(memory_, 0xff, size_t(size_));
#endif
  if (zeros) std::memset(memory_, 0, size_t(size_));
  used_ = 0;
}

}  // namespace fastnode
