// What generated fields include. They define before it
//   FASTNODE_NUMBER    float or double,
//   FASTNODE_BYTES     the size of a vector,
//   FASTNODE_VECTORS   vectors in a pack; 0 for one sample, whose features lie side by side.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "fields/code.h"
#include "mlp/simd/simd_kernels.h"

#if FASTNODE_BYTES == 64
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

namespace fastnode {
namespace {

constexpr int kBytes = FASTNODE_BYTES, kPack = 4;
#if defined(__FMA__) || defined(__aarch64__)
constexpr bool kFused = true;
#else
constexpr bool kFused = false;
#endif
using Number = FASTNODE_NUMBER;

// clang-format off
#if FASTNODE_BYTES == 64
#include "mlp/simd/gelu_avx512-inl.h"
#endif
#include "mlp/simd/activation-inl.h"
#include "fields/math.h"
#include "fields/products.h"
#include "fields/convolutions.h"
// clang-format on

#if FASTNODE_VECTORS
using P = X<Number, FASTNODE_VECTORS>;
#else
using P = Number;
#endif

// Features side by side: whole vectors, and parts of one.
INLINE X<Number, 1> get(const Number* from) { return load_pack<Number, 1>(from); }
INLINE void put(Number* to, X<Number, 1> x) { store_pack<Number, 1>(to, x); }
INLINE void put(Number* to, Number x) { store_pack<Number, 1>(to, all<Number, 1>(x)); }
template <int Count>
INLINE X<Number, 1> get_part(const Number* from) {
  X<Number, 1> x = all<Number, 1>(0);
  __builtin_memcpy(&x, from, Count * sizeof(Number));
  return x;
}
template <int Count>
INLINE void put_part(Number* to, X<Number, 1> x) {
  __builtin_memcpy(to, &x, Count * sizeof(Number));
}
template <int Count>
INLINE void put_part(Number* to, Number x) {
  put_part<Count>(to, all<Number, 1>(x));
}

template <class Q>
INLINE Q larger(Q a, Q b) {
  return f_maximum(a, b);
}
template <class Q>
INLINE Q smaller(Q a, Q b) {
  return f_minimum(a, b);
}

}  // namespace
}  // namespace fastnode
