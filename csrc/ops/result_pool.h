// Memory for the results of CPU ops, reused instead of being returned to the system.
//
// A fresh buffer above some 100 KB comes from the system as untouched pages and goes back when
// freed, so that each pass over it pays a page fault for every 4 KiB. In a training step the same
// sizes come and go every time. The pool keeps what is freed, under one rule: in use plus kept
// never exceeds the most that was ever in use at once, so it never makes the process larger than
// its own results did.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace fastnode {

struct PoolStatistics {
  int64_t in_use;  // bytes behind living tensors
  int64_t kept;    // bytes freed and kept for reuse
  int64_t peak;    // the most that was in use at once
};

c10::Allocator* result_allocator();
PoolStatistics pool_statistics();
// Returns all kept memory to the system, that which the heap keeps included, and forgets the peak.
void release_pool();

// A contiguous tensor on the CPU.
inline at::Tensor empty_result(at::ScalarType dtype, at::IntArrayRef shape) {
  return at::detail::empty_generic(shape, result_allocator(),
                                   c10::DispatchKeySet(c10::DispatchKey::CPU), dtype, std::nullopt);
}

// The same of like's dtype.
inline at::Tensor empty_result(const at::Tensor& like, at::IntArrayRef shape) {
  return empty_result(like.scalar_type(), shape);
}

inline at::Tensor empty_result(const at::Tensor& like) { return empty_result(like, like.sizes()); }

}  // namespace fastnode
