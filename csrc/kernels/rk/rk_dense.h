// rk_dense: out_i = y + sum_j c_ij k_j, the interpolant of one step at many times, each rounded
// once and bit for bit what rk_stage gives for that row of c.
#pragma once

#include <cstdint>

#include "common/terms.h"

namespace fastnode {

// of `terms` only the k_j are used; c is [m, terms.count] in host memory; row i of the result
// starts at out + i * out_stride. The elements [begin, end) on the CPU; all of them on the CUDA
// stream, which gives a cudaError_t.
#define FASTNODE_DECLARE_RK_DENSE(T)                                                   \
  void rk_dense_range(const T* y, const Terms<T>& terms, const acc_t<T>* c, int64_t m, \
                      int64_t out_stride, int64_t begin, int64_t end, T* out);         \
  int rk_dense_cuda(const T* y, const Terms<T>& terms, const acc_t<T>* c, int64_t m,   \
                    int64_t numel, T* out, void* cuda_stream);
FASTNODE_DECLARE_RK_DENSE(float)
FASTNODE_DECLARE_RK_DENSE(double)
FASTNODE_DECLARE_RK_DENSE(BFloat16)
FASTNODE_DECLARE_RK_DENSE(Half)
#undef FASTNODE_DECLARE_RK_DENSE

}  // namespace fastnode
