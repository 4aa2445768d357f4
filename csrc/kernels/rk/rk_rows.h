// rk_stage, rk_error and rk_dense where every row of `dim` elements is a solve of its own, with its
// own step, tolerances and time: on the CPU the rows [begin, end), on the CUDA stream all of them,
// which gives a cudaError_t. Numbers of a row are float64, one a row.
#pragma once

#include <cstdint>

#include "common/terms.h"

namespace fastnode {

// rk_stage_rows: out = y + h sum_j c_j k_j.
// rk_error_rows: norm = sqrt(mean((h sum_j c_j k_j / (atol + rtol max(|y0|, |y1|)))^2)), 0 where
// dim is 0; the sums of a row do not depend on begin and end.
// rk_dense_rows: out = y + sum_j w_j k_j with the weights w as [rows, terms.count], bit for bit
// what rk_stage gives for a row; of `terms` only the k_j are used.
// `partial` is device memory for rk_error_cuda_partials doubles (rk_error.h).
#define FASTNODE_DECLARE_RK_ROWS(T)                                                            \
  void rk_stage_rows_range(const T* y, const Terms<T>& terms, const double* h, int64_t begin,  \
                           int64_t end, int64_t dim, T* out);                                  \
  void rk_error_rows_range(const T* y0, const T* y1, const Terms<T>& terms, const double* h,   \
                           const double* rtol, const double* atol, int64_t begin, int64_t end, \
                           int64_t dim, acc_t<T>* norm);                                       \
  void rk_dense_rows_range(const T* y, const Terms<T>& terms, const double* w, int64_t begin,  \
                           int64_t end, int64_t dim, T* out);                                  \
  int rk_stage_rows_cuda(const T* y, const Terms<T>& terms, const double* h, int64_t rows,     \
                         int64_t dim, T* out, void* cuda_stream);                              \
  int rk_error_rows_cuda(const T* y0, const T* y1, const Terms<T>& terms, const double* h,     \
                         const double* rtol, const double* atol, int64_t rows, int64_t dim,    \
                         acc_t<T>* norm, double* partial, void* cuda_stream);                  \
  int rk_dense_rows_cuda(const T* y, const Terms<T>& terms, const double* w, int64_t rows,     \
                         int64_t dim, T* out, void* cuda_stream);
FASTNODE_DECLARE_RK_ROWS(float)
FASTNODE_DECLARE_RK_ROWS(double)
FASTNODE_DECLARE_RK_ROWS(BFloat16)
FASTNODE_DECLARE_RK_ROWS(Half)
#undef FASTNODE_DECLARE_RK_ROWS

}  // namespace fastnode
