#include <algorithm>

#include "kernels/rk/rk_error.h"

namespace fastnode {
namespace {

constexpr int64_t kBlock = 512;
// Independent sums, added up in a fixed order: vector code with one result for every instruction
// set's width.
constexpr int64_t kLanes = 64;

template <class T>
FASTNODE_HD double rk_error_blocks(const T* __restrict__ y0, const T* __restrict__ y1,
                                   const Terms<T>& terms, acc_t<T> rtol, acc_t<T> atol,
                                   int64_t begin, int64_t end) {
  using A = acc_t<T>;
  A error[kBlock];
  A squares[kLanes] = {};
  for (int64_t start = begin; start < end; start += kBlock) {
    const int64_t n = std::min(kBlock, end - start);
    for (int64_t i = 0; i < n; ++i) error[i] = 0;
    add_terms(error, terms.k, terms.c, terms.count, start, n);
    for (int64_t i = 0; i < n; ++i) {
      const A a = load(y0[start + i]), b = load(y1[start + i]);
      const A ratio = over_tolerance(error[i], a, b, rtol, atol);
      error[i] = ratio * ratio;
    }
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) squares[lane] += error[i + lane];
    }
    for (int64_t lane = 0; i < n; ++i, ++lane) squares[lane] += error[i];
  }
  double total = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) total += double(squares[lane]);
  return total;
}

template <class T>
FASTNODE_HD void rk_error_back_blocks(const T* __restrict__ y0, const T* __restrict__ y1,
                                      const Terms<T>& terms, T rtol, T atol, T factor,
                                      int64_t begin, int64_t end, const ErrorGradients<T>& to) {
  T error[kBlock];
  for (int64_t start = begin; start < end; start += kBlock) {
    const int64_t n = std::min(kBlock, end - start);
    for (int64_t i = 0; i < n; ++i) error[i] = 0;
    add_terms(error, terms.k, terms.c, terms.count, start, n);
    for (int64_t i = 0; i < n; ++i) {
      const ErrorBack<T> back =
          error_back(error[i], y0[start + i], y1[start + i], rtol, atol, factor);
      error[i] = back.error;
      if (to.y0 == nullptr) continue;
      to.y0[start + i] = back.y0;
      to.y1[start + i] = back.y1;
    }
    for (int j = 0; j < terms.count; ++j) {
      T* __restrict__ const out = to.k[j] + start;
      for (int64_t i = 0; i < n; ++i) out[i] = terms.c[j] * error[i];
    }
  }
}

}  // namespace

#define FASTNODE_DEFINE_RK_ERROR_BACK(T)                                                        \
  FASTNODE_CLONES                                                                               \
  void rk_error_back_range(const T* y0, const T* y1, const Terms<T>& terms, T rtol, T atol,     \
                           T factor, int64_t begin, int64_t end, const ErrorGradients<T>& to) { \
    rk_error_back_blocks(y0, y1, terms, rtol, atol, factor, begin, end, to);                    \
  }
FASTNODE_DEFINE_RK_ERROR_BACK(float)
FASTNODE_DEFINE_RK_ERROR_BACK(double)
#undef FASTNODE_DEFINE_RK_ERROR_BACK

#define FASTNODE_DEFINE_RK_ERROR(T)                                                     \
  FASTNODE_CLONES                                                                       \
  double rk_error_range(const T* y0, const T* y1, const Terms<T>& terms, acc_t<T> rtol, \
                        acc_t<T> atol, int64_t begin, int64_t end) {                    \
    return rk_error_blocks(y0, y1, terms, rtol, atol, begin, end);                      \
  }
FASTNODE_DEFINE_RK_ERROR(float)
FASTNODE_DEFINE_RK_ERROR(double)
FASTNODE_DEFINE_RK_ERROR(BFloat16)
FASTNODE_DEFINE_RK_ERROR(Half)
#undef FASTNODE_DEFINE_RK_ERROR

}  // namespace fastnode
