// -inl: included once for each instruction set, in its namespace (kernel_table-inl.h).
// Vectors and packs of them. Included once for each instruction set, inside a namespace of its own
// that defines kBytes, the size of a vector.
#pragma once

template <class T>
struct Lanes;

template <>
struct Lanes<float> {
  typedef float V __attribute__((vector_size(kBytes)));
  typedef int32_t I __attribute__((vector_size(kBytes)));
  static constexpr int kMantissa = 23;
  static constexpr int32_t kOne = 0x3F800000;
  static constexpr float kMagic = 0x1.8p23f;
  // ln 2 in two parts, the first short enough that multiples are exact.
  static constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr float kLowest = -112.0f, kSaturated = 9.1f, kExpm1Lowest = -18.0f;
  // (exp(r) - 1 - r) / r^2 for |r| <= ln(2) / 2.
  static constexpr float kExp[] = {0x1p-1f, 0x1.5554b0p-3f, 0x1.555486p-5f, 0x1.12281cp-7f,
                                   0x1.6d992ep-10f};
  // (exp(2 r) - 1 - 2 r) / (2 r^2): the same coefficients times powers of two.
  static constexpr float kExpTwice[] = {2 * kExp[0], 4 * kExp[1], 8 * kExp[2], 16 * kExp[3],
                                        32 * kExp[4]};
  // (atanh(s) / s - 1) / s^2 in s^2 <= 1 / 9.
  static constexpr float kAtanh[] = {0x1.555558p-2f, 0x1.9996a8p-3f, 0x1.250982p-3f, 0x1.b6d3c4p-4f,
                                     0x1.f1bed0p-4f};
};

template <>
struct Lanes<double> {
  typedef double V __attribute__((vector_size(kBytes)));
  typedef int64_t I __attribute__((vector_size(kBytes)));
  static constexpr int kMantissa = 52;
  static constexpr int64_t kOne = 0x3FF0000000000000;
  static constexpr double kMagic = 0x1.8p52;
  static constexpr double kLn2High = 0x1.62e42fefap-1, kLn2Low = 0x1.cf79abc9e3b3ap-40;
  static constexpr double kLowest = -760.0, kSaturated = 19.1, kExpm1Lowest = -38.0;
  static constexpr double kExp[] = {1.0 / 2,
                                    1.0 / 6,
                                    1.0 / 24,
                                    1.0 / 120,
                                    1.0 / 720,
                                    1.0 / 5040,
                                    1.0 / 40320,
                                    1.0 / 362880,
                                    1.0 / 3628800,
                                    1.0 / 39916800,
                                    1.0 / 479001600,
                                    1.0 / 6227020800.0,
                                    1.0 / 87178291200.0};
  static constexpr double kExpTwice[] = {
      2 * kExp[0],     4 * kExp[1],     8 * kExp[2],    16 * kExp[3],  32 * kExp[4],
      64 * kExp[5],    128 * kExp[6],   256 * kExp[7],  512 * kExp[8], 1024 * kExp[9],
      2048 * kExp[10], 4096 * kExp[11], 8192 * kExp[12]};
  static constexpr double kAtanh[] = {1.0 / 3,  1.0 / 5,  1.0 / 7,  1.0 / 9,  1.0 / 11, 1.0 / 13,
                                      1.0 / 15, 1.0 / 17, 1.0 / 19, 1.0 / 21, 1.0 / 23, 1.0 / 25,
                                      1.0 / 27, 1.0 / 29, 1.0 / 31, 1.0 / 33};
};

template <int N>
struct Size {
  static constexpr int value = N;
};

template <class T>
using V = typename Lanes<T>::V;
template <class T>
using I = typename Lanes<T>::I;
template <class T>
constexpr int kLanes = kBytes / int(sizeof(T));

// Several vectors that take every operation side by side: an operation waits four cycles for the
// one before it, and a processor does not look far enough ahead to find the next vector's by
// itself.
template <class U, int K>
struct Pack {
  U v[K];
};

template <class T, int K>
using X = Pack<V<T>, K>;
template <class T, int K>
using Bits = Pack<I<T>, K>;

template <class T>
INLINE V<T> load(const T* from) {
  V<T> x;
  __builtin_memcpy(&x, from, sizeof(x));
  return x;
}

template <class T>
INLINE void store(T* to, V<T> x) {
  __builtin_memcpy(to, &x, sizeof(x));
}

template <class T>
INLINE V<T> splat(T x) {
  return x - V<T>{};
}

template <class U, int K, class F>
INLINE auto each(F f) {
  Pack<U, K> out;
#pragma GCC unroll 8
  for (int i = 0; i < K; ++i) out.v[i] = f(i);
  return out;
}

#define FASTNODE_PACK_OPERATOR(op)                                            \
  template <class U, int K>                                                   \
  INLINE Pack<U, K> operator op(Pack<U, K> a, Pack<U, K> b) {                 \
    return each<U, K>([&](int i) INLINE_LAMBDA { return a.v[i] op b.v[i]; }); \
  }                                                                           \
  template <class U, int K>                                                   \
  INLINE Pack<U, K> operator op(Pack<U, K> a, decltype(U{}[0] + U{}[0]) b) {  \
    return each<U, K>([&](int i) INLINE_LAMBDA { return a.v[i] op b; });      \
  }
FASTNODE_PACK_OPERATOR(+)
FASTNODE_PACK_OPERATOR(-)
FASTNODE_PACK_OPERATOR(*)
FASTNODE_PACK_OPERATOR(/)
FASTNODE_PACK_OPERATOR(&)
FASTNODE_PACK_OPERATOR(|)
FASTNODE_PACK_OPERATOR(^)
#undef FASTNODE_PACK_OPERATOR

template <class U, int K>
INLINE Pack<U, K> shift_left(Pack<U, K> a, int count) {
  return each<U, K>([&](int i) INLINE_LAMBDA { return a.v[i] << count; });
}

template <class T, int K>
INLINE X<T, K> all(T x) {
  return each<V<T>, K>([&](int) INLINE_LAMBDA { return splat<T>(x); });
}

template <class T, int K>
INLINE Bits<T, K> bits(X<T, K> x) {
  return each<I<T>, K>([&](int i) INLINE_LAMBDA { return (I<T>)x.v[i]; });
}

template <class T, int K>
INLINE X<T, K> number(Bits<T, K> x) {
  return each<V<T>, K>([&](int i) INLINE_LAMBDA { return (V<T>)x.v[i]; });
}

// a where x < limit (x > limit), else b.
template <class T, int K>
INLINE X<T, K> where_below(X<T, K> x, T limit, X<T, K> a, X<T, K> b) {
  return each<V<T>, K>([&](int i) INLINE_LAMBDA { return x.v[i] < limit ? a.v[i] : b.v[i]; });
}

template <class T, int K>
INLINE X<T, K> where_above(X<T, K> x, T limit, X<T, K> a, X<T, K> b) {
  return each<V<T>, K>([&](int i) INLINE_LAMBDA { return x.v[i] > limit ? a.v[i] : b.v[i]; });
}

// NaN stays.
template <class T, int K>
INLINE X<T, K> at_least(X<T, K> x, T low) {
  return where_below<T, K>(x, low, all<T, K>(low), x);
}

template <class T, int K>
INLINE X<T, K> at_most(X<T, K> x, T high) {
  return where_above<T, K>(x, high, all<T, K>(high), x);
}

template <class T, int K, int N>
INLINE X<T, K> polynomial(const T (&c)[N], X<T, K> x) {
  X<T, K> sum = all<T, K>(c[N - 1]);
  for (int i = N - 1; i-- > 0;) sum = sum * x + c[i];
  return sum;
}

template <class T, int K>
INLINE X<T, K> magnitude(X<T, K> x) {
  constexpr auto kRest =
      decltype(Lanes<T>::kOne + 0)(-1) ^ (decltype(Lanes<T>::kOne + 0)(1) << (sizeof(T) * 8 - 1));
  return number<T, K>(bits<T, K>(x) & kRest);
}
