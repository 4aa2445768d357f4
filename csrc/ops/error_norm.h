// The norm of a step's error over a range of elements, by the kernel in rk_error.h.
#pragma once

#include <cmath>
#include <vector>

#include "kernels/rk/rk_error.h"
#include "ops/common.h"

namespace fastnode {

// sqrt(mean(...)) over [begin, end), rounded to the type it is summed in; 0 where the range is
// empty. One partial sum for each piece of the range: the same result for any number of threads.
template <class T>
double error_norm(const T* y0, const T* y1, const Terms<T>& terms, double rtol, double atol,
                  int64_t begin, int64_t end) {
  using A = acc_t<T>;
  const int64_t pieces = (end - begin + kGrain - 1) / kGrain;
  double sum = 0;
  if (pieces == 1) {
    sum = rk_error_range(y0, y1, terms, A(rtol), A(atol), begin, end);
  } else if (pieces > 1) {
    std::vector<double> partial(pieces);
    at::parallel_for(0, pieces, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t from = begin + i * kGrain;
        partial[i] =
            rk_error_range(y0, y1, terms, A(rtol), A(atol), from, std::min(from + kGrain, end));
      }
    });
    for (double each : partial) sum += each;
  }
  return double(A(std::sqrt(sum / double(std::max<int64_t>(1, end - begin)))));
}

}  // namespace fastnode
