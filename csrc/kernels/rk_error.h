// rk_error: the embedded error of a step over its tolerance, squared and summed in one pass.
#pragma once

#include <cstdint>

#include "kernels/terms.h"

namespace fastnode {

// The larger of two magnitudes; NaN if either is.
template <class A>
FASTNODE_HD A larger(A a, A b) {
  a = a < 0 ? -a : a;
  b = b < 0 ? -b : b;
  return b > a || b != b ? b : a;
}

template <class A>
FASTNODE_HD A over_tolerance(A error, A y0, A y1, A rtol, A atol) {
  return error / (atol + rtol * larger(y0, y1));
}

// On the CPU the sum of (sum_j c_j k_j / (atol + rtol max(|y0|, |y1|)))^2 over the elements
// [begin, end). On the CUDA stream the roots of the means, one for each of `rows` rows of `dim`
// elements, with rk_error_cuda_partials doubles of device memory for sums on the way; which thread
// sums what depends on rows, dim and alignment alone. Gives a cudaError_t.
#define FASTNODE_DECLARE_RK_ERROR(T)                                                               \
  double rk_error_range(const T* y0, const T* y1, const Terms<T>& terms, acc_t<T> rtol,            \
                        acc_t<T> atol, int64_t begin, int64_t end);                                \
  int rk_error_cuda(const T* y0, const T* y1, const Terms<T>& terms, acc_t<T> rtol, acc_t<T> atol, \
                    int64_t rows, int64_t dim, acc_t<T>* norm, double* partial,                    \
                    void* cuda_stream);
FASTNODE_DECLARE_RK_ERROR(float)
FASTNODE_DECLARE_RK_ERROR(double)
FASTNODE_DECLARE_RK_ERROR(BFloat16)
FASTNODE_DECLARE_RK_ERROR(Half)
#undef FASTNODE_DECLARE_RK_ERROR

int64_t rk_error_cuda_partials(int64_t rows, int64_t dim);

// Gradients of the norm of N elements: of each stage, and of y0 and y1 unless they are null.
template <class T>
struct ErrorGradients {
  T *y0, *y1;
  T* k[kMaxTerms];
};

// Those of the elements [begin, end) on the CPU, in one pass; `slope` is the gradient that reaches
// the norm over N times the norm.
#define FASTNODE_DECLARE_RK_ERROR_BACK(T)                                                   \
  void rk_error_back_range(const T* y0, const T* y1, const Terms<T>& terms, T rtol, T atol, \
                           T slope, int64_t begin, int64_t end, const ErrorGradients<T>& to);
FASTNODE_DECLARE_RK_ERROR_BACK(float)
FASTNODE_DECLARE_RK_ERROR_BACK(double)
#undef FASTNODE_DECLARE_RK_ERROR_BACK

}  // namespace fastnode
