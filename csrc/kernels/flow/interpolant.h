// interpolant: two end points mixed with one set of coefficients a sample.
//
// Forward and backward are the same arithmetic with the coefficients transposed,
//   z_t  = a z0 + b z1      dz0 = a g_zt + a' g_u
//   u    = a' z0 + b' z1    dz1 = b g_zt + b' g_u
// so one kernel, p = c0 x + c1 y and q = c2 x + c3 y, serves both.
#pragma once

#include <cstdint>

#include "common/scalar.h"

namespace fastnode {

// Coefficients of one mix: four rows of `batch` numbers, c1 and c3 times `sign`.
template <class A>
struct MixRows {
  const A* c[4];
  A sign;
};

template <class A>
FASTNODE_HD A mix(A x, A y, A cx, A cy) {
  return cx * x + cy * y;
}

// p and q for the elements [begin, end) of [batch, dim] tensors. y may be null (then it counts as
// zero), and so may q (then it is not made). `stream`: write past the cache (scalar.h).
#define FASTNODE_DECLARE_MIX(T)                                                      \
  void mix_range(const T* x, const T* y, const MixRows<acc_t<T>>& rows, int64_t dim, \
                 int64_t begin, int64_t end, bool stream, T* p, T* q);
FASTNODE_DECLARE_MIX(float)
FASTNODE_DECLARE_MIX(double)
FASTNODE_DECLARE_MIX(BFloat16)
FASTNODE_DECLARE_MIX(Half)
#undef FASTNODE_DECLARE_MIX

// The coefficients a, b, a', b' (rows of out, [4, batch]) of a built-in path: 0 linear, 1 concave,
// 2 convex (arXiv 2410.22918, section 3). Returns whether every t lies in [0, 1].
template <class A>
bool path_coefficients(const A* t, int64_t batch, int64_t kind, A* out);

}  // namespace fastnode
