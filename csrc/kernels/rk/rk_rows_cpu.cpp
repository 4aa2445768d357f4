#include <algorithm>
#include <cmath>

#include "kernels/rk/rk_error.h"
#include "kernels/rk/rk_rows.h"

namespace fastnode {
namespace {

// As in rk_stage_cpu.cpp. Blocks hold many short rows: sums of stages are then vector code however
// short a row is, and only the last step goes row by row.
constexpr int64_t kBlock = 512;

template <class T>
FASTNODE_HD void stage_rows(const T* __restrict__ y, const Terms<T>& terms, const double* h,
                            int64_t begin, int64_t end, int64_t dim, T* __restrict__ out) {
  using A = acc_t<T>;
  A sum[kBlock];
  int64_t row = begin, row_end = (begin + 1) * dim;
  for (int64_t start = begin * dim; start < end * dim; start += kBlock) {
    const int64_t n = std::min(kBlock, end * dim - start);
    for (int64_t i = 0; i < n; ++i) sum[i] = 0;
    add_terms(sum, terms.k, terms.c, terms.count, start, n);
    for (int64_t i = 0; i < n;) {
      const int64_t stop = std::min(n, row_end - start);
      const A step = A(h[row]);
      for (; i < stop; ++i)
        out[start + i] = store<T>(add_term(A(load(y[start + i])), step, sum[i]));
      if (start + stop == row_end) {
        ++row;
        row_end += dim;
      }
    }
  }
}

// In one order whatever the instruction set's width.
template <class A>
FASTNODE_HD double ordered_sum(const A* x, int64_t n) {
  constexpr int64_t kLanes = 16;
  double total = 0;
  int64_t i = 0;
  if (n >= kLanes) {
    A lanes[kLanes] = {};
    for (; i + kLanes <= n; i += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += x[i + lane];
    }
    for (int64_t lane = 0; lane < kLanes; ++lane) total += double(lanes[lane]);
  }
  for (; i < n; ++i) total += double(x[i]);
  return total;
}

template <class T>
FASTNODE_HD void error_rows(const T* __restrict__ y0, const T* __restrict__ y1,
                            const Terms<T>& terms, const double* h, const double* rtol,
                            const double* atol, int64_t begin, int64_t end, int64_t dim,
                            acc_t<T>* __restrict__ norm) {
  using A = acc_t<T>;
  A error[kBlock];
  if (dim == 0) {
    std::fill(norm + begin, norm + end, A(0));
    return;
  }
  const int64_t rows_at_once = std::max<int64_t>(1, kBlock / dim);
  for (int64_t first = begin; first < end; first += rows_at_once) {
    const int64_t last = std::min(first + rows_at_once, end);
    // Several rows in one block, or one row in several blocks whose sums are carried on.
    double carried = 0;
    for (int64_t start = first * dim; start < last * dim; start += kBlock) {
      const int64_t n = std::min(kBlock, last * dim - start);
      for (int64_t i = 0; i < n; ++i) error[i] = 0;
      add_terms(error, terms.k, terms.c, terms.count, start, n);
      const int64_t width = std::min(dim, n);
      for (int64_t row = first; row < last; ++row) {
        const A step = A(h[row]), relative = A(rtol[row]), absolute = A(atol[row]);
        const int64_t offset = (row - first) * width;
        const T* __restrict__ before = y0 + start + offset;
        const T* __restrict__ after = y1 + start + offset;
        A* __restrict__ squares = error + offset;
        for (int64_t i = 0; i < width; ++i) {
          const A a = load(before[i]), b = load(after[i]);
          const A ratio = over_tolerance(step * squares[i], a, b, relative, absolute);
          squares[i] = ratio * ratio;
        }
        carried += ordered_sum(squares, width);
        if (start + n == last * dim) {
          norm[row] = A(std::sqrt(carried / double(dim)));
          carried = 0;
        }
      }
    }
  }
}

template <class T>
FASTNODE_HD void dense_rows(const T* __restrict__ y, const Terms<T>& terms, const double* w,
                            int64_t begin, int64_t end, int64_t dim, T* __restrict__ out) {
  using A = acc_t<T>;
  A sum[kBlock];
  A weights[kMaxTerms];
  for (int64_t row = begin; row < end; ++row) {
    for (int j = 0; j < terms.count; ++j) weights[j] = A(w[row * terms.count + j]);
    for (int64_t start = row * dim; start < (row + 1) * dim; start += kBlock) {
      const int64_t n = std::min(kBlock, (row + 1) * dim - start);
      for (int64_t i = 0; i < n; ++i) sum[i] = 0;
      add_terms(sum, terms.k, weights, terms.count, start, n);
      for (int64_t i = 0; i < n; ++i) out[start + i] = store<T>(load(y[start + i]) + sum[i]);
    }
  }
}

}  // namespace

#define FASTNODE_DEFINE_RK_ROWS(T)                                                             \
  FASTNODE_CLONES                                                                              \
  void rk_stage_rows_range(const T* y, const Terms<T>& terms, const double* h, int64_t begin,  \
                           int64_t end, int64_t dim, T* out) {                                 \
    stage_rows(y, terms, h, begin, end, dim, out);                                             \
  }                                                                                            \
  FASTNODE_CLONES                                                                              \
  void rk_error_rows_range(const T* y0, const T* y1, const Terms<T>& terms, const double* h,   \
                           const double* rtol, const double* atol, int64_t begin, int64_t end, \
                           int64_t dim, acc_t<T>* norm) {                                      \
    error_rows(y0, y1, terms, h, rtol, atol, begin, end, dim, norm);                           \
  }                                                                                            \
  FASTNODE_CLONES                                                                              \
  void rk_dense_rows_range(const T* y, const Terms<T>& terms, const double* w, int64_t begin,  \
                           int64_t end, int64_t dim, T* out) {                                 \
    dense_rows(y, terms, w, begin, end, dim, out);                                             \
  }
FASTNODE_DEFINE_RK_ROWS(float)
FASTNODE_DEFINE_RK_ROWS(double)
FASTNODE_DEFINE_RK_ROWS(BFloat16)
FASTNODE_DEFINE_RK_ROWS(Half)
#undef FASTNODE_DEFINE_RK_ROWS

}  // namespace fastnode
