// -inl: included once for each instruction set, in its namespace (kernel_table-inl.h).
// Activations and their derivatives on vectors. Included once for each instruction set, inside a
// namespace of its own that defines kBytes, the size of a vector.
//
// Errors are at most 2 units in the last place in float32, subnormal results, infinities and NaN
// included (tests/csrc/mlp/test_activations.py measures them). Polynomials were fitted by
// weighted least squares on Chebyshev nodes, reweighted towards the least largest error; those for
// float64 are Taylor's.
#pragma once

#include "mlp/simd/vector-inl.h"

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

// exp(x) for x <= 0 in factors, so that products with it do not underflow early:
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

// About a / b for b >= 1, to an eighth: the exponent of b changes its sign in whole numbers.
template <int K>
INLINE X<float, K> ratio_to_an_eighth(X<float, K> a, X<float, K> b) {
  const X<float, K> inverse = each<V<float>, K>(
      [&](int i) INLINE_LAMBDA { return (V<float>)(0x7EF311C3 - (I<float>)b.v[i]); });
  return a * inverse;
}

template <int K>
INLINE X<double, K> ratio_to_an_eighth(X<double, K>, X<double, K>) {
  return all<double, K>(0);
}

// What a - q b leaves, q being about a / b: exact where products are added in the same instruction
// (kFused), else by products of halves of numbers, which are.
template <int K>
INLINE X<float, K> remainder(X<float, K> a, X<float, K> b, X<float, K> q) {
  if constexpr (kFused) return a - q * b;
  const auto upper = [](X<float, K> x) INLINE_LAMBDA {
    return number<float, K>(bits<float, K>(x) & int32_t(0xFFFFF000));
  };
  const X<float, K> b1 = upper(b), q1 = upper(q), b2 = b - b1, q2 = q - q1;
  return ((a - q1 * b1) - q1 * b2) - q2 * b1 - q2 * b2;
}

// a / (b + low), without the division's own rounding.
template <int K>
INLINE X<float, K> quotient(X<float, K> a, X<float, K> b, X<float, K> low) {
  const X<float, K> q = a / b;
  return q + ratio_to_an_eighth(remainder(a, b, q) - q * low, b);
}

template <int K>
INLINE X<double, K> quotient(X<double, K> a, X<double, K> b, X<double, K>) {
  return a / b;
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
#if defined(FASTNODE_BY_TABLE)
  if constexpr (sizeof(T) == 4) return tanh_by_table<K>(x);
#endif
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
INLINE X<T, K> far_logistic(X<T, K> x) {
  const Exponential<T, K> e(below_zero<T, K>(x));
  return logistic_times<T, K>(x, all<T, K>(1), e, e.second);
}

template <class T, int K>
INLINE X<T, K> logistic(X<T, K> x) {
#if defined(FASTNODE_BY_TABLE)
  if constexpr (sizeof(T) == 4) {
    const X<T, K> near = logistic_by_table<K>(x);
    if (within<K>(x, kLogisticEnd)) return near;
    return where_below<T, K>(magnitude<T, K>(x), kLogisticEnd, near, far_logistic<T, K>(x));
  }
#endif
  return far_logistic<T, K>(x);
}

template <class T, int K>
INLINE X<T, K> far_silu(X<T, K> x) {
  const Exponential<T, K> e(below_zero<T, K>(x));
  // Far below zero the product is zero, whatever x is, but minus infinity: that is NaN in torch.
  const X<T, K> last = where_below<T, K>(x, Lanes<T>::kLowest, all<T, K>(0), e.second);
  const X<T, K> product = logistic_times<T, K>(x, x, e, last);
  return where_above<T, K>(x, -Lanes<T>::kExpm1Lowest, x, product);
}

template <class T, int K>
INLINE X<T, K> silu(X<T, K> x) {
#if defined(FASTNODE_BY_TABLE)
  if constexpr (sizeof(T) == 4) {
    const X<T, K> near = silu_by_table<K>(x);
    if (within<K>(x, kLogisticEnd)) return near;
    return where_below<T, K>(magnitude<T, K>(x), kLogisticEnd, near, far_silu<T, K>(x));
  }
#endif
  return far_silu<T, K>(x);
}

template <class T, int K>
INLINE X<T, K> far_softplus(X<T, K> x) {
  const X<T, K> e = Exponential<T, K>(below_zero<T, K>(x)).value();
  const X<T, K> b = e + T(2), low = e - (b - T(2));
  const X<T, K> twice = (e + e) / b, s = twice * T(0.5);
  const X<T, K> square = s * s;
  // log(1 + e) = 2 atanh(s), and what the sum of the two largest terms leaves out.
  const X<T, K> linear = at_least<T, K>(x, 0), sum = linear + twice, added = sum - linear;
  const X<T, K> left =
      (linear - (sum - added)) + (twice - added) - ratio_to_an_eighth(twice * low, b);
  const X<T, K> rest = twice * (square * polynomial<T, K>(Lanes<T>::kAtanh, square)) + left;
  return where_above<T, K>(x, 20, x, sum + rest);
}

template <class T, int K>
INLINE X<T, K> softplus(X<T, K> x) {
#if defined(FASTNODE_BY_TABLE)
  if constexpr (sizeof(T) == 4) {
    const X<T, K> near = softplus_by_table<K>(x);
    if (within<K>(x, kLogisticEnd)) return near;
    return where_below<T, K>(magnitude<T, K>(x), kLogisticEnd, near, far_softplus<T, K>(x));
  }
#endif
  return far_softplus<T, K>(x);
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
