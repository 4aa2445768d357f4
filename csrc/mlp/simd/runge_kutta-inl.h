// -inl: included once for each instruction set, in its namespace (kernel_table-inl.h).
// Runge-Kutta arithmetic and transposition.
#pragma once

#include "mlp/simd/vector-inl.h"

// out = y + sum_j c_j k_j for up to 8 terms, y added last (common/terms.h); where `more`, the sum
// goes on from what `out` holds.
template <class T, int Count>
INLINE void combine_few(const T* y, const T* const* k, const T* c, bool by_column, bool more,
                        const Extent& e, T* out) {
  for (int64_t n = 0; n < e.columns; n += kLanes<T>) {
    V<T> weight[Count];
#pragma GCC unroll 8
    for (int j = 0; j < Count; ++j) {
      weight[j] = by_column ? load(c + j * e.columns + n) : splat(c[j]);
    }
    for (int64_t r = 0; r < e.rows; ++r) {
      const int64_t i = r * e.stride + n;
      V<T> sum = more ? load(out + i) : V<T>{};
#pragma GCC unroll 8
      for (int j = 0; j < Count; ++j) sum += weight[j] * load(k[j] + i);
      store<T>(out + i, y ? load(y + i) + sum : sum);
    }
  }
}

template <class T>
void combine(const T* y, const T* const* k, const T* c, bool by_column, int count,
             const Extent& given, T* out) {
  Extent e = given;
  // Rows of one vector each, in the order in which they lie.
  if (!by_column && e.stride == e.columns) {
    e = {e.rows * (e.columns / kLanes<T>), kLanes<T>, kLanes<T>};
  }
  bool more = false;
  do {
    const int now = count < 8 ? count : 8;
    const T* const base = count > now ? nullptr : y;
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
        combine_few<T, 1>(base, k, c, by_column, more, e, out);
        break;
      case 2:
        combine_few<T, 2>(base, k, c, by_column, more, e, out);
        break;
      case 3:
        combine_few<T, 3>(base, k, c, by_column, more, e, out);
        break;
      case 4:
        combine_few<T, 4>(base, k, c, by_column, more, e, out);
        break;
      case 5:
        combine_few<T, 5>(base, k, c, by_column, more, e, out);
        break;
      case 6:
        combine_few<T, 6>(base, k, c, by_column, more, e, out);
        break;
      case 7:
        combine_few<T, 7>(base, k, c, by_column, more, e, out);
        break;
      default:
        combine_few<T, 8>(base, k, c, by_column, more, e, out);
    }
    more = true;
    k += now;
    c += by_column ? now * e.columns : now;
    count -= now;
  } while (count > 0);
}

template <class T>
void error(const T* y0, const T* y1, const T* const* k, const T* c, const T* rtol, const T* atol,
           bool by_column, int count, const Extent& e, T* sums) {
  const auto number = [&](const T* from, int64_t n)
                          INLINE_LAMBDA { return by_column ? load(from + n) : splat(*from); };
  const int64_t step = by_column ? e.columns : 1;
  for (int64_t n = 0; n < e.columns; n += kLanes<T>) {
    V<T> total = {};
    const V<T> relative = number(rtol, n), absolute = number(atol, n);
    for (int64_t r = 0; r < e.rows; ++r) {
      const int64_t i = r * e.stride + n;
      V<T> sum = {};
      for (int j = 0; j < count; ++j) sum += number(c + j * step, n) * load(k[j] + i);
      const V<T> before = magnitude<T, 1>({load(y0 + i)}).v[0];
      const V<T> after = magnitude<T, 1>({load(y1 + i)}).v[0];
      const V<T> ratio = sum / (absolute + relative * (before > after ? before : after));
      total += ratio * ratio;
    }
    store<T>(sums + n, total);
  }
}

// Rows a and b of a square of which groups of `Span` columns are exchanged.
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
