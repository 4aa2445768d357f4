// rk_adjoint: out = base + sum_j c_j x_j, rounded once: what the transpose of a step adds up.
#pragma once

#include <cstdint>

#include "common/terms.h"

namespace fastnode {

// `base` is null, which stands for zero, or `out` itself, to which more is added. The elements
// [begin, end) on the CPU; all of them on the CUDA stream, which gives a cudaError_t.
#define FASTNODE_DECLARE_RK_ADJOINT(T)                                                             \
  void rk_adjoint_range(const T* base, const Terms<T>& terms, int64_t begin, int64_t end, T* out); \
  int rk_adjoint_cuda(const T* base, const Terms<T>& terms, int64_t numel, T* out,                 \
                      void* cuda_stream);
FASTNODE_DECLARE_RK_ADJOINT(float)
FASTNODE_DECLARE_RK_ADJOINT(double)
FASTNODE_DECLARE_RK_ADJOINT(BFloat16)
FASTNODE_DECLARE_RK_ADJOINT(Half)
#undef FASTNODE_DECLARE_RK_ADJOINT

}  // namespace fastnode
