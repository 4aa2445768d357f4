#include <algorithm>
#include <cmath>

#include "kernels/flow/interpolant.h"

namespace fastnode {
namespace {

// HasY and HasQ are template arguments so that each variant is one straight loop.
template <bool HasY, bool HasQ, class T>
FASTNODE_HD void mix_one(const T* x, const T* y, const acc_t<T> (&c)[4], int64_t i, T* p, T* q) {
  using A = acc_t<T>;
  const A xi = load(x[i]), yi = HasY ? A(load(y[i])) : A(0);
  *p = store<T>(HasY ? mix(xi, yi, c[0], c[1]) : c[0] * xi);
  if constexpr (HasQ) *q = store<T>(HasY ? mix(xi, yi, c[2], c[3]) : c[2] * xi);
}

template <bool HasY, bool HasQ, class T>
FASTNODE_HD void mix_rows(const T* __restrict__ x, const T* __restrict__ y,
                          const MixRows<acc_t<T>>& rows, int64_t dim, int64_t begin, int64_t end,
                          bool stream, T* __restrict__ p, T* __restrict__ q) {
  using A = acc_t<T>;
  for (int64_t i = begin; i < end;) {
    const int64_t row = i / dim;
    const int64_t stop = std::min(end, (row + 1) * dim);
    const A c[4] = {rows.c[0][row], HasY ? rows.c[1][row] * rows.sign : A(0),
                    HasQ ? rows.c[2][row] : A(0), HasY && HasQ ? rows.c[3][row] * rows.sign : A(0)};
    if (stream) {
      // p and q are whole allocations, so that they are aligned at the same i.
      for (; i < stop && !streamable(p + i); ++i) mix_one<HasY, HasQ>(x, y, c, i, p + i, q + i);
      alignas(64) T p_block[kBlock], q_block[kBlock];
      for (; i + kBlock <= stop; i += kBlock) {
        for (int k = 0; k < kBlock; ++k) {
          mix_one<HasY, HasQ>(x, y, c, i + k, p_block + k, q_block + k);
        }
        stream_block(p + i, p_block);
        if constexpr (HasQ) stream_block(q + i, q_block);
      }
    }
    for (; i < stop; ++i) mix_one<HasY, HasQ>(x, y, c, i, p + i, q + i);
  }
}

}  // namespace

#define FASTNODE_DEFINE_MIX(T)                                                       \
  FASTNODE_CLONES                                                                    \
  void mix_range(const T* x, const T* y, const MixRows<acc_t<T>>& rows, int64_t dim, \
                 int64_t begin, int64_t end, bool stream, T* p, T* q) {              \
    if (y != nullptr) {                                                              \
      if (q != nullptr) {                                                            \
        mix_rows<true, true>(x, y, rows, dim, begin, end, stream, p, q);             \
      } else {                                                                       \
        mix_rows<true, false>(x, y, rows, dim, begin, end, stream, p, q);            \
      }                                                                              \
    } else if (q != nullptr) {                                                       \
      mix_rows<false, true>(x, y, rows, dim, begin, end, stream, p, q);              \
    } else {                                                                         \
      mix_rows<false, false>(x, y, rows, dim, begin, end, stream, p, q);             \
    }                                                                                \
  }
FASTNODE_DEFINE_MIX(float)
FASTNODE_DEFINE_MIX(double)
FASTNODE_DEFINE_MIX(BFloat16)
FASTNODE_DEFINE_MIX(Half)
#undef FASTNODE_DEFINE_MIX

template <class A>
bool path_coefficients(const A* t, int64_t batch, int64_t kind, A* out) {
  constexpr A half_pi = A(1.57079632679489661923);
  A *a = out, *b = out + batch, *da = out + 2 * batch, *db = out + 3 * batch;
  bool inside = true;
  for (int64_t i = 0; i < batch; ++i) inside &= t[i] >= 0 && t[i] <= 1;
  if (kind == 0) {
    for (int64_t i = 0; i < batch; ++i) {
      a[i] = 1 - t[i];
      b[i] = t[i];
      da[i] = -1;
      db[i] = 1;
    }
    return inside;
  }
  for (int64_t i = 0; i < batch; ++i) {
    const A s = std::sin(half_pi * t[i]), c = std::cos(half_pi * t[i]);
    a[i] = kind == 1 ? c : 1 - s;
    b[i] = kind == 1 ? s : 1 - c;
    da[i] = -half_pi * (kind == 1 ? s : c);
    db[i] = half_pi * (kind == 1 ? c : s);
  }
  return inside;
}

template bool path_coefficients<float>(const float*, int64_t, int64_t, float*);
template bool path_coefficients<double>(const double*, int64_t, int64_t, double*);

}  // namespace fastnode
