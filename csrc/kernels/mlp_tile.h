// The kernels of mlp.h for one instruction set. Included by mlp_v4.cpp, mlp_v3.cpp and
// mlp_baseline.cpp inside a namespace of their own, which says how wide vectors are (kBytes), how
// many rows fit the registers (kBlock, kNarrow) and what functions are compiled for.
//
// Nothing from the standard library may be called by name in here but what C declares: a template
// of it that is compiled for one of these instruction sets could be the copy that the linker keeps
// for everyone.

#include "kernels/mlp_math.h"

template <int N>
struct Size {
  static constexpr int value = N;
};

// ---- matrix products

// Sums of few elements are cut in parts: a multiplication with addition takes four cycles, and one
// or two can begin in each. By the number of rows alone, so that a sample's result does not depend
// on how many others are beside it.
template <int Rows>
constexpr int kParts = Rows >= 4   ? 1
                       : Rows >= 2 ? 2
                                   : 4;

template <class T, int Rows, int Vectors, bool Adjacent, bool Add>
INLINE void multiply_block(const Product<T>& p, const T* a, const T* b, int64_t b_stride, T* c) {
  constexpr int kCuts = kParts<Rows>;
  V<T> sum[kCuts][Rows][Vectors] = {};
  const int64_t row = Adjacent ? 1 : p.a_stride, step = Adjacent ? p.a_stride : 1;
  int64_t k = 0;
#pragma GCC unroll 1
  for (; k + kCuts <= p.depth; k += kCuts) {
#pragma GCC unroll 4
    for (int cut = 0; cut < kCuts; ++cut) {
      V<T> right[Vectors];
#pragma GCC unroll 4
      for (int n = 0; n < Vectors; ++n) right[n] = load(b + n * kLanes<T>);
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 4
        for (int n = 0; n < Vectors; ++n) sum[cut][m][n] += right[n] * a[m * row];
      }
      a += step;
      b += b_stride;
    }
  }
#pragma GCC unroll 1
  for (; k < p.depth; ++k) {
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 4
      for (int n = 0; n < Vectors; ++n) sum[0][m][n] += load(b + n * kLanes<T>) * a[m * row];
    }
    a += step;
    b += b_stride;
  }
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < Vectors; ++n) {
      V<T> total = sum[0][m][n];
      if (kCuts == 2) total += sum[kCuts - 1][m][n];
      if (kCuts == 4)
        total = (total + sum[1 % kCuts][m][n]) + (sum[2 % kCuts][m][n] + sum[3 % kCuts][m][n]);
      T* to = c + m * p.c_stride + n * kLanes<T>;
      store<T>(to, Add ? load(to) + total : total);
    }
  }
}

template <class T>
using Block = void (*)(const Product<T>&, const T*, const T*, int64_t, T*);

template <class T, int Rows, int Vectors, bool Adjacent, bool Add>
void block_function(const Product<T>& p, const T* a, const T* b, int64_t b_stride, T* c) {
  multiply_block<T, Rows, Vectors, Adjacent, Add>(p, a, b, b_stride, c);
}

// Functions for 1 to Rows rows and one or two vectors.
template <class T, int Rows, bool Adjacent, bool Add>
struct Blocks {
  Block<T> of[Rows][2];
  constexpr Blocks() : of{} { fill<Rows>(); }
  template <int R>
  constexpr void fill() {
    of[R - 1][0] = &block_function<T, R, 1, Adjacent, Add>;
    of[R - 1][1] = &block_function<T, R, 2, Adjacent, Add>;
    if constexpr (R > 1) fill<R - 1>();
  }
};

template <class T>
void multiply_left(const Product<T>& p) {
  static constexpr Blocks<T, kBlock, true, false> kBlocks;
  for (int64_t n = 0; n < p.columns;) {
    const int64_t width = panel_columns(p.columns, kLanes<T>, n);
    const T* a = p.a;
    Product<T> part = p;
    for (int64_t m = 0; m < p.rows;) {
      const int64_t size = block_rows(p.rows, kBlock, m);
      part.a_stride = size;
      kBlocks.of[size - 1][width > kLanes<T>](part, a, p.b + n, p.b_stride,
                                              p.c + m * p.c_stride + n);
      a += size * p.depth;
      m += size;
    }
    n += width;
  }
}

template <class T>
void multiply_right(const Product<T>& p) {
  static constexpr Blocks<T, kNarrow, false, false> kBlocks;
  const T* b = p.b;
  for (int64_t n = 0; n < p.columns;) {
    const int64_t width = panel_columns(p.columns, kLanes<T>, n);
    for (int64_t m = 0; m < p.rows;) {
      const int64_t size = block_rows(p.rows, kNarrow, m);
      kBlocks.of[size - 1][width > kLanes<T>](p, p.a + m * p.a_stride, b, width,
                                              p.c + m * p.c_stride + n);
      m += size;
    }
    b += width * p.depth;
    n += width;
  }
}

template <class T>
void accumulate(const Product<T>& p) {
  static constexpr Blocks<T, kBlock, true, true> kBlocks;
  for (int64_t m = 0; m < p.rows;) {
    const int64_t size = block_rows(p.rows, kBlock, m);
    for (int64_t n = 0; n < p.columns;) {
      const int64_t width = panel_columns(p.columns, kLanes<T>, n);
      kBlocks.of[size - 1][width > kLanes<T>](p, p.a + m, p.b + n, p.b_stride,
                                              p.c + m * p.c_stride + n);
      n += width;
    }
    m += size;
  }
}

// ---- activations

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

inline void gelu(const float* z, float* out, const Extent& e) {
  map_wide(z, out, e, [](X<double, 2> x, int64_t) INLINE_LAMBDA {
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

template <class T>
void activate(Activation which, const T* z, T* out, const Extent& e) {
  switch (which) {
    case Activation::kElu:
      FASTNODE_MAP(elu);
    case Activation::kGelu:
      return gelu(z, out, e);
    case Activation::kRelu:
      FASTNODE_MAP(relu);
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
  map_wide(g, g, e, [&](X<double, 2> upstream, int64_t i) INLINE_LAMBDA {
    const X<double, 2> x = widen<2>(z + i);
    X<double, 2> bell;
    const X<double, 2> below = normal_distribution<2>(x, bell);
    return upstream * (below + x * bell * kBell);
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
    case Activation::kRelu:
      return scale(z, a, g, e, [](auto size, auto x, auto) INLINE_LAMBDA {
        constexpr int K = size.value;
        return where_above<T, K>(x, 0, all<T, K>(1), all<T, K>(0));
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

// ---- Runge-Kutta arithmetic

// out = y + sum_j c_j k_j for up to 8 slopes; longer sums are made in several passes.
template <class T, int Count>
INLINE void combine_few(const T* y, const T* const* k, const T* c, const Extent& e, T* out) {
  for (int64_t n = 0; n < e.columns; n += kLanes<T>) {
    V<T> weight[Count];
#pragma GCC unroll 8
    for (int j = 0; j < Count; ++j) weight[j] = load(c + j * e.columns + n);
    for (int64_t r = 0; r < e.rows; ++r) {
      const int64_t i = r * e.stride + n;
      V<T> sum = y ? load(y + i) : V<T>{};
#pragma GCC unroll 8
      for (int j = 0; j < Count; ++j) sum += weight[j] * load(k[j] + i);
      store<T>(out + i, sum);
    }
  }
}

template <class T>
void combine(const T* y, const T* const* k, const T* c, int count, const Extent& e, T* out) {
  do {
    const int now = count < 8 ? count : 8;
    switch (now) {
      case 0:
        for (int64_t r = 0; r < e.rows; ++r) {
          for (int64_t n = 0; n < e.columns; n += kLanes<T>) {
            const int64_t i = r * e.stride + n;
            store<T>(out + i, y ? load(y + i) : V<T>{});
          }
        }
        break;
      case 1:
        combine_few<T, 1>(y, k, c, e, out);
        break;
      case 2:
        combine_few<T, 2>(y, k, c, e, out);
        break;
      case 3:
        combine_few<T, 3>(y, k, c, e, out);
        break;
      case 4:
        combine_few<T, 4>(y, k, c, e, out);
        break;
      case 5:
        combine_few<T, 5>(y, k, c, e, out);
        break;
      case 6:
        combine_few<T, 6>(y, k, c, e, out);
        break;
      case 7:
        combine_few<T, 7>(y, k, c, e, out);
        break;
      default:
        combine_few<T, 8>(y, k, c, e, out);
    }
    y = out;
    k += now;
    c += now * e.columns;
    count -= now;
  } while (count > 0);
}

template <class T>
void error(const T* y0, const T* y1, const T* const* k, const T* c, int count, const T* rtol,
           const T* atol, const Extent& e, T* sums) {
  for (int64_t n = 0; n < e.columns; n += kLanes<T>) {
    V<T> total = {};
    const V<T> relative = load(rtol + n), absolute = load(atol + n);
    for (int64_t r = 0; r < e.rows; ++r) {
      const int64_t i = r * e.stride + n;
      V<T> sum = {};
      for (int j = 0; j < count; ++j) sum += load(c + j * e.columns + n) * load(k[j] + i);
      const V<T> before = magnitude<T, 1>({load(y0 + i)}).v[0];
      const V<T> after = magnitude<T, 1>({load(y1 + i)}).v[0];
      const V<T> ratio = sum / (absolute + relative * (before > after ? before : after));
      total += ratio * ratio;
    }
    store<T>(sums + n, total);
  }
}

// ---- transposition

// Rows a and b of a square of which columns in groups of `Span` change places.
template <class T, int Span>
INLINE void exchange(V<T>& a, V<T>& b) {
#if defined(__clang__)
  V<T> first = a, second = b;
  for (int i = 0; i < kLanes<T>; ++i) {
    first[i] = i & Span ? b[i - Span] : a[i];
    second[i] = i & Span ? b[i] : a[i + Span];
  }
  a = first;
  b = second;
#else
  I<T> left, right;
  for (int i = 0; i < kLanes<T>; ++i) {
    left[i] = i & Span ? kLanes<T> + i - Span : i;
    right[i] = i & Span ? kLanes<T> + i : i + Span;
  }
  const V<T> first = __builtin_shuffle(a, b, left), second = __builtin_shuffle(a, b, right);
  a = first;
  b = second;
#endif
}

template <class T, int Span>
INLINE void turn(V<T> (&x)[kLanes<T>]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) {
    if (!(i & Span)) exchange<T, Span>(x[i], x[i + Span]);
  }
  if constexpr (Span > 1) turn<T, Span / 2>(x);
}

template <class T>
void transpose(const T* from, int64_t rows, int64_t columns, T* to, int64_t stride) {
  constexpr int kSide = kLanes<T>;
  int64_t r = 0;
  for (; r + kSide <= rows; r += kSide) {
    for (int64_t n = 0; n < columns; n += kSide) {
      V<T> x[kSide];
#pragma GCC unroll 16
      for (int i = 0; i < kSide; ++i) x[i] = load(from + (r + i) * columns + n);
      turn<T, kSide / 2>(x);
#pragma GCC unroll 16
      for (int i = 0; i < kSide; ++i) store<T>(to + (n + i) * stride + r, x[i]);
    }
  }
  for (; r < rows; ++r) {
    for (int64_t n = 0; n < columns; ++n) to[n * stride + r] = from[r * columns + n];
  }
}

template <class T>
constexpr MlpKernels<T> table() {
  return {
      kName,          kLanes<T>,    kBlock,     kNarrow,     &multiply_left<T>, &multiply_right<T>,
      &accumulate<T>, &activate<T>, &derive<T>, &combine<T>, &transpose<T>,     &error<T>};
}
