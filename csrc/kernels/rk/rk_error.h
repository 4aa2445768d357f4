// rk_error: the embedded error of a step over its tolerance, squared and summed in one pass.
#pragma once

#include <cstdint>

#include "common/terms.h"

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

// Gradients of a norm of N elements by one of them: of its error, y0 and y1. With s = atol + rtol
// max(|y0|, |y1|), r = error / s and norm = sqrt(mean r^2): d norm / d error = r / (N norm s) and
// d norm / d s = -r^2 / (N norm s); where y0 and y1 are of one size each has half. `factor` is the
// gradient that reaches the norm over N times the norm.
template <class T>
struct ErrorBack {
  T error, y0, y1;
};
template <class T>
FASTNODE_HD ErrorBack<T> error_back(T error, T y0, T y1, T rtol, T atol, T factor) {
  const T size0 = y0 < 0 ? -y0 : y0, size1 = y1 < 0 ? -y1 : y1;
  const T scale = atol + rtol * larger(y0, y1), ratio = error / scale;
  const T back = factor * ratio / scale, of_size = -back * ratio * rtol;
  const T share = T(size0 > size1) + T(0.5) * T(size0 == size1);
  return {back, of_size * share * (T(y0 > 0) - T(y0 < 0)),
          of_size * (1 - share) * (T(y1 > 0) - T(y1 < 0))};
}

// On the CPU the sum of (sum_j c_j k_j / (atol + rtol max(|y0|, |y1|)))^2 over the elements
// [begin, end). On the CUDA stream the roots of the means, one for each of `rows` rows of `dim`
// elements, with rk_error_cuda_partials doubles of device memory for sums on the way, which are
// enough for shorter rows too; which thread sums what depends on rows, dim and alignment alone.
// Gives a cudaError_t.
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

// Those of the elements [begin, end) on the CPU, in one pass, with the factor of error_back.
#define FASTNODE_DECLARE_RK_ERROR_BACK(T)                                                   \
  void rk_error_back_range(const T* y0, const T* y1, const Terms<T>& terms, T rtol, T atol, \
                           T factor, int64_t begin, int64_t end, const ErrorGradients<T>& to);
FASTNODE_DECLARE_RK_ERROR_BACK(float)
FASTNODE_DECLARE_RK_ERROR_BACK(double)
#undef FASTNODE_DECLARE_RK_ERROR_BACK

}  // namespace fastnode
