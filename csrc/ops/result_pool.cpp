#include "ops/result_pool.h"

#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <mutex>
#include <unordered_map>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace fastnode {
namespace {

// Below this, malloc keeps its pages by itself.
constexpr size_t kSmallest = size_t(64) << 10;
constexpr size_t kHugePage = size_t(2) << 20;

// Large blocks lie on huge pages where the system has them: a 512th of the page faults when they
// are first touched, and of the entries that a pass needs in the translation buffer.
void* allocate_block(size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes >= 2 * kHugePage) {
    void* block = nullptr;
    TORCH_CHECK(posix_memalign(&block, kHugePage, bytes) == 0, "not enough memory for ", bytes,
                " bytes");
    // Advice only: it may be ignored.
    madvise(block, bytes, MADV_HUGEPAGE);
    return block;
  }
#endif
  return c10::alloc_cpu(bytes);
}

class ResultPool final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes < kSmallest) return c10::GetCPUAllocator()->allocate(bytes);
    void* block = nullptr;
    {
      std::lock_guard lock(mutex_);
      for (auto it = kept_.rbegin(); it != kept_.rend(); ++it) {
        if (it->bytes != bytes) continue;
        block = it->data;
        kept_.erase(std::next(it).base());
        kept_bytes_ -= bytes;
        break;
      }
      in_use_ += bytes;
      peak_ = std::max(peak_, in_use_);
      evict();
      if (block != nullptr) sizes_[block] = bytes;
    }
    if (block == nullptr) {
      block = allocate_block(bytes);
      std::lock_guard lock(mutex_);
      sizes_[block] = bytes;
    }
    return {block, block, &ResultPool::give_back, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &ResultPool::give_back; }

  void copy_data(void* to, const void* from, size_t count) const override {
    std::memcpy(to, from, count);
  }

  PoolStatistics statistics() {
    std::lock_guard lock(mutex_);
    return {int64_t(in_use_), int64_t(kept_bytes_), int64_t(peak_)};
  }

  void release() {
    std::lock_guard lock(mutex_);
    peak_ = in_use_;
    evict();
  }

 private:
  struct Block {
    void* data;
    size_t bytes;
  };

  static void give_back(void* data);

  // Frees the longest kept blocks until the rule of the header holds.
  void evict() {
    while (!kept_.empty() && in_use_ + kept_bytes_ > peak_) {
      kept_bytes_ -= kept_.front().bytes;
      c10::free_cpu(kept_.front().data);
      kept_.pop_front();
    }
  }

  std::mutex mutex_;
  std::deque<Block> kept_;  // oldest first
  std::unordered_map<void*, size_t> sizes_;
  size_t in_use_ = 0, kept_bytes_ = 0, peak_ = 0;
};

// Never destroyed: tensors may outlive every static object.
ResultPool& pool() {
  static ResultPool* const instance = new ResultPool;
  return *instance;
}

void ResultPool::give_back(void* data) {
  ResultPool& self = pool();
  std::lock_guard lock(self.mutex_);
  const auto entry = self.sizes_.find(data);
  const size_t bytes = entry->second;
  self.sizes_.erase(entry);
  self.in_use_ -= bytes;
  self.kept_.push_back({data, bytes});
  self.kept_bytes_ += bytes;
  self.evict();
}

}  // namespace

c10::Allocator* result_allocator() { return &pool(); }
PoolStatistics pool_statistics() { return pool().statistics(); }

void release_pool() {
  pool().release();
#if defined(__GLIBC__)
  // The heap keeps the holes that aligned blocks leave, and fits no such block into them again.
  malloc_trim(0);
#endif
}

}  // namespace fastnode
