#pragma once

#include <cstdint>

#include "mlp/simd/simd_kernels.h"

namespace fastnode {

// One block of memory for a solve, handed out in lines of 64 bytes.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();

  // Its contents are zeros, or what was there before.
  void reserve(int64_t bytes, bool zeros);
  template <class T>
  T* take(int64_t count) {
    T* const out = reinterpret_cast<T*>(memory_ + used_);
    used_ += bytes<T>(count);
    return out;
  }
  template <class T>
  static int64_t bytes(int64_t count) {
    return round_up(count * int64_t(sizeof(T)), 64);
  }

 private:
  char* memory_ = nullptr;
  int64_t size_ = 0, used_ = 0;
};

}  // namespace fastnode
