// Activations and their derivatives on vectors. Included once for each instruction set, inside a
// namespace of its own that defines kBytes, the size of a vector.
//
// Errors are at most 2 units in the last place in float32, subnormal results, infinities and NaN
// included (tests/kernels/test_mlp_activations.py measures them). Polynomials were fitted by
// weighted least squares on Chebyshev nodes, reweighted towards the least largest error; those for
// float64 are Taylor's.

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

// 2^n where the lowest bits of z hold n.
template <class T, int K>
INLINE X<T, K> power_of_two(Bits<T, K> z) {
  return number<T, K>(shift_left(z, Lanes<T>::kMantissa) + Lanes<T>::kOne);
}

// exp(x) = (1 + tail) 2^n with |tail| < 0.42; z holds n in its lowest bits.
template <class T, int K>
INLINE X<T, K> exp_parts(X<T, K> x, Bits<T, K>& z) {
  using L = Lanes<T>;
  const X<T, K> shifted = x * T(1.44269504088896340736) + L::kMagic;
  const X<T, K> n = shifted - L::kMagic;
  const X<T, K> r = (x - n * L::kLn2High) - n * L::kLn2Low;
  z = bits<T, K>(shifted);
  return r + r * r * polynomial<T, K>(L::kExp, r);
}

// exp(x) for x <= 0 in factors, so that what multiplies it need not meet its underflow:
// (1 + tail) first second.
template <class T, int K>
struct Exponential {
  X<T, K> tail, first, second;

  INLINE explicit Exponential(X<T, K> x) {
    Bits<T, K> z;
    tail = exp_parts<T, K>(at_least<T, K>(x, Lanes<T>::kLowest), z);
    z = z - bits<T, K>(all<T, K>(Lanes<T>::kMagic));
    const Bits<T, K> half = each<I<T>, K>([&](int i) INLINE_LAMBDA { return z.v[i] >> 1; });
    first = power_of_two<T, K>(half);
    second = power_of_two<T, K>(z - half);
  }
  INLINE X<T, K> value() const { return (tail + T(1)) * first * second; }
};

// What q = a / b has too much of a / (b + low), low being what the rounding of b >= 1 left out.
template <int K>
INLINE X<float, K> excess(X<float, K> q, X<float, K> b, X<float, K> low) {
  // 1 / b to an eighth: the exponent changes its sign in whole numbers.
  const X<float, K> inverse = each<V<float>, K>(
      [&](int i) INLINE_LAMBDA { return (V<float>)(0x7EF311C3 - (I<float>)b.v[i]); });
  return q * low * inverse;
}

template <int K>
INLINE X<double, K> excess(X<double, K>, X<double, K>, X<double, K>) {
  return all<double, K>(0);
}

template <class U, int K>
INLINE Pack<U, K> quotient(Pack<U, K> a, Pack<U, K> b, Pack<U, K> low) {
  const Pack<U, K> q = a / b;
  return q - excess(q, b, low);
}

template <class T, int K>
INLINE X<T, K> expm1_below(X<T, K> x) {
  Bits<T, K> z;
  const X<T, K> tail = exp_parts<T, K>(at_least<T, K>(x, Lanes<T>::kExpm1Lowest), z);
  const X<T, K> scale = power_of_two<T, K>(z);
  return scale * tail + (scale - T(1));
}

// h / (h + 1) with h = (exp(2 |x|) - 1) / 2.
template <class T, int K>
INLINE X<T, K> hyperbolic_tangent(X<T, K> x) {
  using L = Lanes<T>;
  const X<T, K> a = magnitude<T, K>(x), near = at_most<T, K>(a, L::kSaturated);
  const X<T, K> shifted = near * T(2 * 1.44269504088896340736) + L::kMagic;
  const X<T, K> n = shifted - L::kMagic;
  X<T, K> r = near - n * T(0.34657359027997265);
  if constexpr (sizeof(T) == 8) r = (near - n * (L::kLn2High / 2)) - n * (L::kLn2Low / 2);
  const X<T, K> tail = r + r * r * polynomial<T, K>(L::kExpTwice, r);
  const X<T, K> scale = power_of_two<T, K>(bits<T, K>(shifted));
  const X<T, K> h = scale * tail + (scale * T(0.5) - T(0.5));
  const X<T, K> b = h + T(1), low = h - (b - T(1));
  const X<T, K> y = quotient(h, b, low);
  return number<T, K>(bits<T, K>(y) | (bits<T, K>(x) ^ bits<T, K>(a)));
}

// -|x|
template <class T, int K>
INLINE X<T, K> below_zero(X<T, K> x) {
  return number<T, K>(bits<T, K>(x) | bits<T, K>(all<T, K>(T(-0.0))));
}

// 1 / (1 + exp(-|x|)) or, for negative x, exp(x) / (1 + exp(x)); times `factor`.
template <class T, int K>
INLINE X<T, K> logistic_times(X<T, K> x, X<T, K> factor, const Exponential<T, K>& e, X<T, K> last) {
  const X<T, K> value = e.value(), b = value + T(1), low = value - (b - T(1));
  const X<T, K> scaled = factor * e.first, below = scaled + scaled * e.tail;
  const X<T, K> ratio = quotient(where_below<T, K>(x, 0, below, factor), b, low);
  return where_below<T, K>(x, 0, ratio * last, ratio);
}

template <class T, int K>
INLINE X<T, K> logistic(X<T, K> x) {
  const Exponential<T, K> e(below_zero<T, K>(x));
  return logistic_times<T, K>(x, all<T, K>(1), e, e.second);
}

template <class T, int K>
INLINE X<T, K> silu(X<T, K> x) {
  const Exponential<T, K> e(below_zero<T, K>(x));
  // Far below zero the product is zero, whatever x is, but minus infinity: that is NaN in torch.
  const X<T, K> last = where_below<T, K>(x, Lanes<T>::kLowest, all<T, K>(0), e.second);
  const X<T, K> product = logistic_times<T, K>(x, x, e, last);
  return where_above<T, K>(x, -Lanes<T>::kExpm1Lowest, x, product);
}

template <class T, int K>
INLINE X<T, K> softplus(X<T, K> x) {
  const X<T, K> e = Exponential<T, K>(below_zero<T, K>(x)).value();
  const X<T, K> b = e + T(2), low = e - (b - T(2));
  const X<T, K> twice = (e + e) / b, s = twice * T(0.5);
  const X<T, K> square = s * s;
  // log(1 + e) = 2 atanh(s), and what the sum of the two largest terms leaves out.
  const X<T, K> linear = at_least<T, K>(x, 0), sum = linear + twice, added = sum - linear;
  const X<T, K> left = (linear - (sum - added)) + (twice - added) - excess(twice, b, low);
  const X<T, K> rest = twice * (square * polynomial<T, K>(Lanes<T>::kAtanh, square)) + left;
  return where_above<T, K>(x, 20, x, sum + rest);
}

template <class T, int K>
INLINE X<T, K> elu(X<T, K> x) {
  return where_above<T, K>(x, 0, x, expm1_below<T, K>(x));
}

// Float32 by way of float64, half a vector at a time: what has no simple accurate form in float32.
typedef float HalfVector __attribute__((vector_size(kBytes / 2)));

template <int K>
INLINE X<double, K> widen(const float* from) {
  return each<V<double>, K>([&](int i) INLINE_LAMBDA {
    HalfVector x;
    __builtin_memcpy(&x, from + i * kLanes<double>, sizeof(x));
    return __builtin_convertvector(x, V<double>);
  });
}

template <int K>
INLINE void narrow(float* to, X<double, K> x) {
  for (int i = 0; i < K; ++i) {
    const HalfVector y = __builtin_convertvector(x.v[i], HalfVector);
    __builtin_memcpy(to + i * kLanes<double>, &y, sizeof(y));
  }
}

// exp(-a^2 / 2) and the normal distribution function at x to 1e-9, a = |x|. The latter is
// exp(-a^2 / 2) R(a) for negative x, R a polynomial in (a - 3) / (a + 3).
template <int K>
INLINE X<double, K> normal_distribution(X<double, K> x, X<double, K>& bell) {
  static constexpr double kRatio[] = {
      0x1.f1b89c23b7fd0p-4,  -0x1.a6b669d510bb2p-3, 0x1.f8baba0e641d7p-4,   -0x1.7a94880cd39f8p-5,
      0x1.91f3ef29a1b6dp-8,  0x1.7ccf1d24c3a27p-9,  -0x1.03a60bf3cb570p-10, -0x1.6797ce7ca5d8ep-12,
      0x1.11f32d1ad4213p-13, 0x1.061cdfdf41e87p-14, -0x1.99d01592e376dp-17, -0x1.2516504df38fbp-17};
  const X<double, K> a = magnitude<double, K>(x), near = at_most<double, K>(a, 15.0);
  const X<double, K> zero = all<double, K>(0);
  bell = Exponential<double, K>(near * near * -0.5).value();
  const X<double, K> tail = bell * polynomial<double, K>(kRatio, (near - 3.0) / (near + 3.0));
  // Below the smallest float32 from here on, and exactly zero, whatever it is multiplied by.
  bell = where_above<double, K>(a, 15.0, zero, bell);
  const X<double, K> below = where_above<double, K>(a, 15.0, zero, tail);
  return where_below<double, K>(x, 0, below, all<double, K>(1) - below);
}

// sin(x + quarter pi / 2) for |x| < 2^20.
template <int K>
INLINE X<double, K> sine(X<double, K> x, int64_t quarter) {
  static constexpr double kSine[] = {-1.0 / 6, 1.0 / 120, -1.0 / 5040, 1.0 / 362880,
                                     -1.0 / 39916800};
  static constexpr double kCosine[] = {1.0 / 24, -1.0 / 720, 1.0 / 40320, -1.0 / 3628800,
                                       1.0 / 479001600};
  const X<double, K> shifted = x * 0x1.45f306dc9c883p-1 + Lanes<double>::kMagic;
  const X<double, K> n = shifted - Lanes<double>::kMagic;
  const X<double, K> r = (x - n * 0x1.921fb544p0) - n * 0x1.0b4611a626331p-34;
  const Bits<double, K> place = bits<double, K>(shifted) + quarter;
  const X<double, K> square = r * r;
  const X<double, K> s = r + r * square * polynomial<double, K>(kSine, square);
  const X<double, K> c =
      (square * square * polynomial<double, K>(kCosine, square) - square * 0.5) + 1.0;
  return each<V<double>, K>([&](int i) INLINE_LAMBDA {
    const V<double> chosen = (place.v[i] & 1) != 0 ? c.v[i] : s.v[i];
    return (V<double>)((I<double>)chosen ^ ((place.v[i] & 2) << 62));
  });
}
