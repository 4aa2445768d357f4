// Functions of numbers, and of packs of vectors, for generated fields. Included inside a namespace
// (runtime.h). Errors on vectors are at most 2 units in the last place in float32, as those of
// mlp/simd/math-inl.h, which this adds to; what has no code for vectors is computed number by
// number by the C library.
#pragma once

// f of each vector of a pack, or of each number.
template <class U, int K, class F>
INLINE Pack<U, K> each_of(Pack<U, K> x, F f) {
  return each<U, K>([&](int i) INLINE_LAMBDA { return f(x.v[i]); });
}
template <int K, class F>
INLINE X<Number, K> each_number(X<Number, K> x, F f) {
  return each<V<Number>, K>([&](int i) INLINE_LAMBDA {
    V<Number> y;
    for (int j = 0; j < kLanes<Number>; ++j) y[j] = f(x.v[i][j]);
    return y;
  });
}

#define FASTNODE_BY_NUMBER(name, call)                                        \
  template <class U, int K>                                                   \
  INLINE Pack<U, K> f_##name(Pack<U, K> x) {                                  \
    return each_number<K>(x, [](Number y) INLINE_LAMBDA { return call(y); }); \
  }                                                                           \
  INLINE float f_##name(float x) { return call(x); }                          \
  INLINE double f_##name(double x) { return call(x); }

FASTNODE_BY_NUMBER(acos, std::acos)
FASTNODE_BY_NUMBER(acosh, std::acosh)
FASTNODE_BY_NUMBER(asin, std::asin)
FASTNODE_BY_NUMBER(asinh, std::asinh)
FASTNODE_BY_NUMBER(atan, std::atan)
FASTNODE_BY_NUMBER(atanh, std::atanh)
FASTNODE_BY_NUMBER(ceil, std::ceil)
FASTNODE_BY_NUMBER(cosh, std::cosh)
FASTNODE_BY_NUMBER(erfc, std::erfc)
FASTNODE_BY_NUMBER(floor, std::floor)
FASTNODE_BY_NUMBER(log10, std::log10)
FASTNODE_BY_NUMBER(log2, std::log2)
FASTNODE_BY_NUMBER(round, std::nearbyint)
FASTNODE_BY_NUMBER(sinh, std::sinh)
FASTNODE_BY_NUMBER(sqrt, std::sqrt)
FASTNODE_BY_NUMBER(tan, std::tan)
FASTNODE_BY_NUMBER(trunc, std::trunc)

// Two arguments, of which one may be a number for all lanes.
template <class A>
constexpr bool kNumber = std::is_arithmetic_v<A>;

template <int K>
INLINE X<Number, K> lift(X<Number, K> x, X<Number, K>) {
  return x;
}
template <int K>
INLINE X<Number, K> lift(Number x, X<Number, K>) {
  return all<Number, K>(x);
}

// f(a, b) of vectors, with numbers spread over the lanes.
template <class A, class B, class F>
INLINE auto with_both(A a, B b, F f) {
  if constexpr (kNumber<A>)
    return f(lift(a, b), b);
  else if constexpr (kNumber<B>)
    return f(a, lift(b, a));
  else
    return f(a, b);
}

#define FASTNODE_BOTH_BY_NUMBER(name, call)                                                 \
  template <class A, class B>                                                               \
  INLINE auto f_##name(A a, B b) {                                                          \
    if constexpr (kNumber<A> && kNumber<B>) {                                               \
      return A(call(a, b));                                                                 \
    } else {                                                                                \
      return with_both(a, b, []<class U, int K>(Pack<U, K> x, Pack<U, K> y) INLINE_LAMBDA { \
        return each<U, K>([&](int i) INLINE_LAMBDA {                                        \
          U z;                                                                              \
          for (size_t j = 0; j < sizeof(U) / sizeof(x.v[0][0]); ++j) {                      \
            z[j] = call(x.v[i][j], y.v[i][j]);                                              \
          }                                                                                 \
          return z;                                                                         \
        });                                                                                 \
      });                                                                                   \
    }                                                                                       \
  }

template <class T>
INLINE T remainder_of(T a, T b) {
  const T r = std::fmod(a, b);
  return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}

FASTNODE_BOTH_BY_NUMBER(atan2, std::atan2)
FASTNODE_BOTH_BY_NUMBER(copysign, std::copysign)
FASTNODE_BOTH_BY_NUMBER(fmod, std::fmod)
FASTNODE_BOTH_BY_NUMBER(hypot, std::hypot)
FASTNODE_BOTH_BY_NUMBER(pow, std::pow)
FASTNODE_BOTH_BY_NUMBER(remainder, remainder_of)

// a where l OP r, else b.
#define FASTNODE_CHOOSE(name, op)                                                            \
  template <class L, class R, class A, class B>                                              \
  INLINE auto where_##name(L l, R r, A a, B b) {                                             \
    if constexpr (kNumber<L> && kNumber<R>) {                                                \
      if constexpr (kNumber<A> && kNumber<B>)                                                \
        return l op r ? a : b;                                                               \
      else if constexpr (kNumber<A>)                                                         \
        return l op r ? lift(a, b) : b;                                                      \
      else if constexpr (kNumber<B>)                                                         \
        return l op r ? a : lift(b, a);                                                      \
      else                                                                                   \
        return l op r ? a : b;                                                               \
    } else {                                                                                 \
      return with_both(l, r, [&]<class U, int K>(Pack<U, K> x, Pack<U, K> y) INLINE_LAMBDA { \
        const Pack<U, K> p = lift(a, x), q = lift(b, x);                                     \
        return each<U, K>([&](int i)                                                         \
                              INLINE_LAMBDA { return x.v[i] op y.v[i] ? p.v[i] : q.v[i]; }); \
      });                                                                                    \
    }                                                                                        \
  }                                                                                          \
  template <class L, class R>                                                                \
  INLINE auto f_##name(L l, R r) {                                                           \
    using T = std::conditional_t<kNumber<L>, L, R>;                                          \
    if constexpr (kNumber<T>)                                                                \
      return where_##name(l, r, T(1), T(0));                                                 \
    else                                                                                     \
      return where_##name(l, r, Number(1), Number(0));                                       \
  }
FASTNODE_CHOOSE(lt, <)
FASTNODE_CHOOSE(le, <=)
FASTNODE_CHOOSE(gt, >)
FASTNODE_CHOOSE(ge, >=)
FASTNODE_CHOOSE(eq, ==)
FASTNODE_CHOOSE(ne, !=)

template <class C, class A, class B>
INLINE auto f_where(C c, A a, B b) {
  return where_ne(c, Number(0), a, b);
}
template <class A>
INLINE auto f_logical_not(A a) {
  return f_eq(a, Number(0));
}
template <class A, class B>
INLINE auto f_logical_and(A a, B b) {
  return where_ne(a, Number(0), f_ne(b, Number(0)), Number(0));
}
template <class A, class B>
INLINE auto f_logical_or(A a, B b) {
  return where_ne(a, Number(0), Number(1), f_ne(b, Number(0)));
}
template <class A, class B>
INLINE auto f_logical_xor(A a, B b) {
  return f_ne(f_ne(a, Number(0)), f_ne(b, Number(0)));
}
// NaN of either stays.
template <class A, class B>
INLINE auto f_maximum(A a, B b) {
  return where_ne(a, a, a, where_ge(a, b, a, b));
}
template <class A, class B>
INLINE auto f_minimum(A a, B b) {
  return where_ne(a, a, a, where_le(a, b, a, b));
}
template <class A>
INLINE auto f_relu(A a) {
  return where_lt(a, Number(0), Number(0), a);
}
template <class A>
INLINE auto f_sign(A a) {
  return f_gt(a, Number(0)) - f_lt(a, Number(0));
}
template <class A>
INLINE auto f_isnan(A a) {
  return f_ne(a, a);
}
template <class A>
INLINE auto f_isinf(A a) {
  return f_eq(f_abs(a), std::numeric_limits<Number>::infinity());
}

// a OP b where a is a number.
#define FASTNODE_NUMBER_FIRST(op)                                            \
  template <class U, int K>                                                  \
  INLINE Pack<U, K> operator op(decltype(U{}[0] + U{}[0]) a, Pack<U, K> b) { \
    return each<U, K>([&](int i) INLINE_LAMBDA { return a op b.v[i]; });     \
  }
FASTNODE_NUMBER_FIRST(+)
FASTNODE_NUMBER_FIRST(-)
FASTNODE_NUMBER_FIRST(*)
FASTNODE_NUMBER_FIRST(/)
#undef FASTNODE_NUMBER_FIRST

template <class A>
INLINE A f_neg(A a) {
  if constexpr (kNumber<A>)
    return -a;
  else
    return each_of(a, [](auto x) INLINE_LAMBDA { return -x; });
}
template <class A>
INLINE A f_square(A a) {
  return a * a;
}
template <class A>
INLINE A f_cube(A a) {
  return a * a * a;
}
template <class A>
INLINE A f_reciprocal(A a) {
  return Number(1) / a;
}
template <class A>
INLINE A f_rsqrt(A a) {
  return Number(1) / f_sqrt(a);
}
template <class A, class B, class C>
INLINE auto f_fma(A a, B b, C c) {
  return a * b + c;
}

INLINE float f_abs(float x) { return std::fabs(x); }
INLINE double f_abs(double x) { return std::fabs(x); }
template <int K>
INLINE X<Number, K> f_abs(X<Number, K> x) {
  using T = Number;
  return magnitude<T, K>(x);
}

// Numbers.
#define FASTNODE_ONE(name, call)                     \
  INLINE float f_##name(float x) { return call(x); } \
  INLINE double f_##name(double x) { return call(x); }
FASTNODE_ONE(exp, std::exp)
FASTNODE_ONE(expm1, std::expm1)
FASTNODE_ONE(log, std::log)
FASTNODE_ONE(log1p, std::log1p)
FASTNODE_ONE(sin, std::sin)
FASTNODE_ONE(cos, std::cos)
FASTNODE_ONE(erf, std::erf)
FASTNODE_ONE(tanh, std::tanh)
#undef FASTNODE_ONE
template <class T>
  requires kNumber<T>
INLINE T f_sigmoid(T x) {
  const T e = std::exp(-std::fabs(x));
  return x < 0 ? e / (1 + e) : 1 / (1 + e);
}

// Vectors.
template <int K>
INLINE X<Number, K> f_tanh(X<Number, K> x) {
  using T = Number;
  return hyperbolic_tangent<T, K>(x);
}
template <int K>
INLINE X<Number, K> f_sigmoid(X<Number, K> x) {
  using T = Number;
  return logistic<T, K>(x);
}

// In two factors, as 2^n may lie outside of the exponents although the product does not.
template <int K>
INLINE X<Number, K> f_exp(X<Number, K> x) {
  using T = Number;
  constexpr T kHighest = sizeof(T) == 4 ? T(89) : T(710);
  Bits<T, K> z;
  const X<T, K> clipped = at_most<T, K>(at_least<T, K>(x, Lanes<T>::kLowest), kHighest);
  const X<T, K> tail = exp_parts<T, K>(clipped, z);
  z = z - bits<T, K>(all<T, K>(Lanes<T>::kMagic));
  const Bits<T, K> half = each<I<T>, K>([&](int i) INLINE_LAMBDA { return z.v[i] >> 1; });
  return (tail + T(1)) * power_of_two<T, K>(half) * power_of_two<T, K>(z - half);
}

template <int K>
INLINE X<Number, K> f_expm1(X<Number, K> x) {
  using T = Number;
  // Below one half exp(x) - 1 would lose digits.
  const X<T, K> near = expm1_below<T, K>(at_most<T, K>(x, T(1)));
  return where_above<T, K>(x, T(0.5), f_exp(x) - T(1), near);
}

// m in [2/3, 4/3) and n with x = m 2^n: log(x) = n log(2) + 2 atanh((m - 1) / (m + 1)).
template <int K>
INLINE X<Number, K> f_log(X<Number, K> x) {
  using T = Number;
  using L = Lanes<T>;
  using N = std::remove_cv_t<decltype(L::kOne)>;
  constexpr T kSmall = sizeof(T) == 4 ? T(0x1p-126) : T(0x1p-1022);
  constexpr T kUp = sizeof(T) == 4 ? T(0x1p24) : T(0x1p54), kUpLog = sizeof(T) == 4 ? 24 : 54;
  const X<T, K> normal = where_below<T, K>(x, kSmall, x * kUp, x);
  constexpr N kTwoThirds = sizeof(T) == 4 ? N(0x3F2AAAAB) : N(0x3FE5555555555555);
  const Bits<T, K> shifted = bits<T, K>(normal) - kTwoThirds;
  const Bits<T, K> exponent =
      each<I<T>, K>([&](int i) INLINE_LAMBDA { return shifted.v[i] >> L::kMantissa; });
  const X<T, K> m = number<T, K>(bits<T, K>(normal) - shift_left(exponent, L::kMantissa));
  X<T, K> n = each<V<T>, K>(
      [&](int i) INLINE_LAMBDA { return __builtin_convertvector(exponent.v[i], V<T>); });
  n = where_below<T, K>(x, kSmall, n - kUpLog, n);
  const X<T, K> f = m - T(1), b = m + T(1), s = f / b, square = s * s;
  // 2 s = f - s f without rounding of the larger part.
  const X<T, K> rest = s * (square * polynomial<T, K>(L::kAtanh, square) * T(2) - f);
  const X<T, K> y = n * L::kLn2High + (f + (rest + n * L::kLn2Low));
  const T infinity = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  const X<T, K> large = where_above<T, K>(x, std::numeric_limits<T>::max(), x, y);
  const X<T, K> small = where_below<T, K>(x, 0, all<T, K>(nan), all<T, K>(-infinity));
  return where_ne(x, x, x, where_above<T, K>(x, 0, large, small));
}

template <int K>
INLINE X<Number, K> f_log1p(X<Number, K> x) {
  using T = Number;
  const X<T, K> u = x + T(1), left = x - (u - T(1));
  const X<T, K> y = f_log(u) + left / u;
  const T infinity = std::numeric_limits<T>::infinity();
  const X<T, K> tiny =
      where_below<T, K>(magnitude<T, K>(x), T(sizeof(T) == 4 ? 1e-4 : 1e-8), x - x * x * T(0.5), y);
  return where_eq(x, infinity, x, where_eq(x, T(-1), -infinity, tiny));
}

// f(pack of float64) on a pack of float32, half a vector at a time.
template <int K, class P, class F>
INLINE P by_double(P x, F f) {
  return each<V<float>, K>([&](int i) INLINE_LAMBDA {
    float in[kLanes<float>], out[kLanes<float>];
    store<float>(in, x.v[i]);
    narrow<2>(out, f(widen<2>(in), in));
    return load<float>(out);
  });
}

// What has a short formula in float64 alone, f(pack of float64, where the float32 stand), or number
// by number.
template <int K, class F, class G>
INLINE X<Number, K> wide_or_by_number(X<Number, K> x, F f, G by_number) {
  if constexpr (sizeof(Number) == 4)
    return by_double<K>(x, f);
  else
    return each_number<K>(x, by_number);
}

template <int K>
INLINE X<Number, K> f_sin(X<Number, K> x) {
  return wide_or_by_number<K>(
      x, [](auto y, const float* from) INLINE_LAMBDA { return sine_anywhere(y, from, 0); },
      [](Number y) { return std::sin(y); });
}
template <int K>
INLINE X<Number, K> f_cos(X<Number, K> x) {
  return wide_or_by_number<K>(
      x, [](auto y, const float* from) INLINE_LAMBDA { return sine_anywhere(y, from, 1); },
      [](Number y) { return std::cos(y); });
}

// Near zero by its series, elsewhere by the normal distribution.
INLINE X<double, 2> wide_erf(X<double, 2> y) {
  static constexpr double kSeries[] = {1.0,          -1.0 / 3,       1.0 / 10,      -1.0 / 42,
                                       1.0 / 216,    -1.0 / 1320,    1.0 / 9360,    -1.0 / 75600,
                                       1.0 / 685440, -1.0 / 6894720, 1.0 / 76204800};
  const X<double, 2> square = y * y;
  const X<double, 2> near =
      y * polynomial<double, 2>(kSeries, at_most<double, 2>(square, 1.0)) * 1.1283791670955126;
  X<double, 2> bell;
  const X<double, 2> far = normal_distribution<2>(y * 1.4142135623730951, bell) * 2.0 - 1.0;
  return where_below<double, 2>(square, 1.0, near, far);
}
template <int K>
INLINE X<Number, K> f_erf(X<Number, K> x) {
  return wide_or_by_number<K>(
      x, [](auto y, const float*) INLINE_LAMBDA { return wide_erf(y); },
      [](Number y) { return std::erf(y); });
}
