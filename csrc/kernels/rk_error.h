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

// The sum of (sum_j c_j k_j / (atol + rtol max(|y0|, |y1|)))^2 over the elements [begin, end).
#define FASTNODE_DECLARE_RK_ERROR(T)                                                    \
  double rk_error_range(const T* y0, const T* y1, const Terms<T>& terms, acc_t<T> rtol, \
                        acc_t<T> atol, int64_t begin, int64_t end);
FASTNODE_DECLARE_RK_ERROR(float)
FASTNODE_DECLARE_RK_ERROR(double)
FASTNODE_DECLARE_RK_ERROR(BFloat16)
FASTNODE_DECLARE_RK_ERROR(Half)
#undef FASTNODE_DECLARE_RK_ERROR

}  // namespace fastnode
