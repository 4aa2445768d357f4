// rk_stage: out = y + sum_j c_j k_j, rounded once.
#pragma once

#include <cstdint>

#include "common/terms.h"

namespace fastnode {

// The elements [begin, end) on the CPU; all of them on the CUDA stream, which gives a cudaError_t.
#define FASTNODE_DECLARE_RK_STAGE(T)                                                          \
  void rk_stage_range(const T* y, const Terms<T>& terms, int64_t begin, int64_t end, T* out); \
  int rk_stage_cuda(const T* y, const Terms<T>& terms, int64_t numel, T* out, void* cuda_stream);
FASTNODE_DECLARE_RK_STAGE(float)
FASTNODE_DECLARE_RK_STAGE(double)
FASTNODE_DECLARE_RK_STAGE(BFloat16)
FASTNODE_DECLARE_RK_STAGE(Half)
#undef FASTNODE_DECLARE_RK_STAGE

}  // namespace fastnode
