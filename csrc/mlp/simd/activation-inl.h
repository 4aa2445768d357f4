// -inl: included once for each instruction set, in its namespace (kernel_table-inl.h).
// Activations and their derivatives over rectangles.
#pragma once

#include "mlp/simd/math-inl.h"

// step(pack size, place) over an extent.
template <class T, class F>
INLINE void walk(const Extent& e, F step) {
  const bool flat = e.stride == e.columns;
  const int64_t rows = flat ? 1 : e.rows, columns = flat ? e.rows * e.columns : e.columns;
  for (int64_t r = 0; r < rows; ++r) {
    int64_t i = r * e.stride;
    const int64_t end = i + columns;
    for (; i + kPack * kLanes<T> <= end; i += kPack * kLanes<T>) step(Size<kPack>{}, i);
    for (; i < end; i += kLanes<T>) step(Size<1>{}, i);
  }
}

template <class T, int K>
INLINE X<T, K> load_pack(const T* from) {
  return each<V<T>, K>([&](int i) INLINE_LAMBDA { return load(from + i * kLanes<T>); });
}

template <class T, int K>
INLINE void store_pack(T* to, X<T, K> x) {
  for (int i = 0; i < K; ++i) store<T>(to + i * kLanes<T>, x.v[i]);
}

// Calls a function of packs by the size of a pack.
#define FASTNODE_MAP(function)                                         \
  return walk<T>(e, [&](auto size, int64_t i) INLINE_LAMBDA {          \
    constexpr int K = size.value;                                      \
    store_pack<T, K>(out + i, function<T, K>(load_pack<T, K>(z + i))); \
  })

// f(pack of float64, place) over an extent of float32.
template <class F>
INLINE void map_wide(const float* from, float* to, const Extent& e, F f) {
  for (int64_t r = 0; r < e.rows; ++r) {
    for (int64_t i = r * e.stride; i < r * e.stride + e.columns; i += kLanes<float>) {
      narrow<2>(to + i, f(widen<2>(from + i), i));
    }
  }
}

// f(number) over an extent: float64 for what has no simple accurate form.
template <class F>
INLINE void map_scalar(const double* from, double* to, const Extent& e, F f) {
  for (int64_t r = 0; r < e.rows; ++r) {
    for (int64_t i = r * e.stride; i < r * e.stride + e.columns; ++i) to[i] = f(from[i], i);
  }
}

INLINE bool small(const float* x) {
  for (int i = 0; i < kLanes<float>; ++i) {
    if (!(x[i] > -0x1p20f && x[i] < 0x1p20f)) return false;
  }
  return true;
}

// sin or, a quarter further, cos of what lies at `from`.
INLINE X<double, 2> sine_anywhere(X<double, 2> x, const float* from, int64_t quarter) {
  if (small(from)) return sine<2>(x, quarter);
  X<double, 2> y = x;
  for (int i = 0; i < kLanes<float>; ++i) {
    const double number = from[i];
    y.v[i / kLanes<double>][i % kLanes<double>] =
        quarter ? __builtin_cos(number) : __builtin_sin(number);
  }
  return y;
}

constexpr double kRootHalf = 0.70710678118654752440, kBell = 0.39894228040143267794;

INLINE double distribution(double x) { return 0.5 * __builtin_erfc(-x * kRootHalf); }

// near(pack, place) where z is where the tables of GELU are, exact(place) for a vector elsewhere.
template <class Near, class Exact>
INLINE void map_gelu(const float* z, float* to, const Extent& e, Near near, Exact exact) {
  walk<float>(e, [&](auto size, int64_t i) INLINE_LAMBDA {
    constexpr int K = size.value;
#if defined(FASTNODE_BY_TABLE)
    const X<float, K> x = load_pack<float, K>(z + i), by_table = near(x, i);
    if (within<K>(x, kGeluEnd)) return store_pack<float, K>(to + i, by_table);
#endif
    float far[K * kLanes<float>];
    for (int j = 0; j < K; ++j) narrow<2>(far + j * kLanes<float>, exact(i + j * kLanes<float>));
    X<float, K> out = load_pack<float, K>(far);
#if defined(FASTNODE_BY_TABLE)
    out = where_below<float, K>(magnitude<float, K>(x), kGeluEnd, by_table, out);
#endif
    store_pack<float, K>(to + i, out);
  });
}

inline void gelu(const float* z, float* out, const Extent& e) {
  const auto near = []<int K>(X<float, K> x, int64_t) INLINE_LAMBDA { return gelu_by_table<K>(x); };
  map_gelu(z, out, e, near, [&](int64_t i) INLINE_LAMBDA {
    const X<double, 2> x = widen<2>(z + i);
    X<double, 2> bell;
    return x * normal_distribution<2>(x, bell);
  });
}

inline void gelu(const double* z, double* out, const Extent& e) {
  map_scalar(z, out, e, [](double x, int64_t) { return x * distribution(x); });
}

inline void sin(const float* z, float* out, const Extent& e) {
  map_wide(z, out, e,
           [&](X<double, 2> x, int64_t i) INLINE_LAMBDA { return sine_anywhere(x, z + i, 0); });
}

inline void sin(const double* z, double* out, const Extent& e) {
  map_scalar(z, out, e, [](double x, int64_t) { return __builtin_sin(x); });
}

template <class T, int K>
INLINE X<T, K> relu(X<T, K> x) {
  return at_least<T, K>(x, 0);
}

template <class T, int K>
INLINE X<T, K> leaky_relu(X<T, K> x) {
  return where_above<T, K>(x, 0, x, x * T(kLeakySlope));
}

template <class T, int K>
INLINE X<T, K> selu(X<T, K> x) {
  const X<T, K> below = expm1_below<T, K>(x);
  X<T, K> scaled = below * T(kSeluDepth);
  // What the constant lost when it was rounded.
  if constexpr (sizeof(T) == 4) scaled = scaled + below * T(kSeluDepth - double(T(kSeluDepth)));
  return where_above<T, K>(x, 0, x * T(kSeluScale), scaled);
}

template <class T>
void activate(Activation which, const T* z, T* out, const Extent& e) {
  switch (which) {
    case Activation::kElu:
      FASTNODE_MAP(elu);
    case Activation::kGelu:
      return gelu(z, out, e);
    case Activation::kLeakyRelu:
      FASTNODE_MAP(leaky_relu);
    case Activation::kRelu:
      FASTNODE_MAP(relu);
    case Activation::kSelu:
      FASTNODE_MAP(selu);
    case Activation::kSigmoid:
      FASTNODE_MAP(logistic);
    case Activation::kSilu:
      FASTNODE_MAP(silu);
    case Activation::kSin:
      return sin(z, out, e);
    case Activation::kSoftplus:
      FASTNODE_MAP(softplus);
    case Activation::kTanh:
      FASTNODE_MAP(hyperbolic_tangent);
  }
}
#undef FASTNODE_MAP

// g *= f(z, a)
template <class T, class F>
INLINE void scale(const T* z, const T* a, T* g, const Extent& e, F f) {
  walk<T>(e, [&](auto size, int64_t i) INLINE_LAMBDA {
    constexpr int K = size.value;
    store_pack<T, K>(
        g + i, load_pack<T, K>(g + i) * f(size, load_pack<T, K>(z + i), load_pack<T, K>(a + i)));
  });
}

inline void scale_by_gelu(const float* z, float* g, const Extent& e) {
  const auto near = [&]<int K>(X<float, K> x, int64_t i) INLINE_LAMBDA {
    return load_pack<float, K>(g + i) * gelu_derivative_by_table<K>(x);
  };
  map_gelu(z, g, e, near, [&](int64_t i) INLINE_LAMBDA {
    const X<double, 2> x = widen<2>(z + i);
    X<double, 2> bell;
    const X<double, 2> below = normal_distribution<2>(x, bell);
    return widen<2>(g + i) * (below + x * bell * kBell);
  });
}

inline void scale_by_gelu(const double* z, double* g, const Extent& e) {
  map_scalar(g, g, e, [&](double upstream, int64_t i) {
    const double bell = kBell * __builtin_exp(-0.5 * z[i] * z[i]);
    return upstream * (distribution(z[i]) + z[i] * bell);
  });
}

inline void scale_by_cosine(const float* z, float* g, const Extent& e) {
  map_wide(g, g, e, [&](X<double, 2> upstream, int64_t i) INLINE_LAMBDA {
    return upstream * sine_anywhere(widen<2>(z + i), z + i, 1);
  });
}

inline void scale_by_cosine(const double* z, double* g, const Extent& e) {
  map_scalar(g, g, e, [&](double upstream, int64_t i) { return upstream * __builtin_cos(z[i]); });
}

template <class T>
void derive(Activation which, const T* z, const T* a, T* g, const Extent& e) {
  switch (which) {
    case Activation::kElu:
      return scale(z, a, g, e, [](auto size, auto x, auto y) INLINE_LAMBDA {
        constexpr int K = size.value;
        return where_above<T, K>(x, 0, all<T, K>(1), y + T(1));
      });
    case Activation::kGelu:
      return scale_by_gelu(z, g, e);
    case Activation::kLeakyRelu:
      return scale(z, a, g, e, [](auto size, auto x, auto) INLINE_LAMBDA {
        constexpr int K = size.value;
        return where_above<T, K>(x, 0, all<T, K>(1), all<T, K>(T(kLeakySlope)));
      });
    case Activation::kRelu:
      return scale(z, a, g, e, [](auto size, auto x, auto) INLINE_LAMBDA {
        constexpr int K = size.value;
        return where_above<T, K>(x, 0, all<T, K>(1), all<T, K>(0));
      });
    case Activation::kSelu:
      return scale(z, a, g, e, [](auto size, auto x, auto y) INLINE_LAMBDA {
        constexpr int K = size.value;
        return where_above<T, K>(x, 0, all<T, K>(T(kSeluScale)), y + T(kSeluDepth));
      });
    case Activation::kSigmoid:
      return scale(z, a, g, e, [](auto, auto, auto y) INLINE_LAMBDA { return y - y * y; });
    case Activation::kSilu:
      return scale(z, a, g, e, [](auto size, auto x, auto y) INLINE_LAMBDA {
        constexpr int K = size.value;
        const auto s = logistic<T, K>(x);
        return s + y * (all<T, K>(1) - s);
      });
    case Activation::kSin:
      return scale_by_cosine(z, g, e);
    case Activation::kSoftplus:
      return scale(z, a, g, e, [](auto size, auto x, auto) INLINE_LAMBDA {
        constexpr int K = size.value;
        return where_above<T, K>(x, 20, all<T, K>(1), logistic<T, K>(x));
      });
    case Activation::kTanh:
      return scale(z, a, g, e, [](auto size, auto, auto y) INLINE_LAMBDA {
        constexpr int K = size.value;
        return all<T, K>(1) - y * y;
      });
  }
}
