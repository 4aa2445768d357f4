// -inl: included once for each instruction set, in its namespace (kernel_table-inl.h).
// Matrix products.
#pragma once

#include "mlp/simd/vector-inl.h"

// Sums of few elements are cut in parts: a multiplication with addition takes four cycles, and one
// or two can begin in each. By the number of rows alone, so that a sample's result does not depend
// on how many others are beside it.
template <int Rows>
constexpr int kParts = Rows >= 4   ? 1
                       : Rows >= 2 ? 2
                                   : 4;

// In a register: gcc reads what few rows share from memory again for each of them, and there may be
// more to read than to multiply.
template <class T, int Rows>
INLINE void hold(V<T>& x) {
#if defined(__x86_64__)
  if constexpr (Rows < 4) asm("" : "+x"(x));
#endif
}

// Row: numbers from a row of `a` to the next where it is known, else 0; 1 if they lie side by side.
template <class T, int Rows, int Vectors, int Row, bool Add>
INLINE void multiply_block(const Product<T>& p, const T* a, const T* b, int64_t b_stride, T* c) {
  constexpr int kCuts = kParts<Rows>;
  V<T> sum[kCuts][Rows][Vectors] = {};
  const int64_t row = Row ? Row : p.a_stride, step = Row == 1 ? p.a_stride : 1;
  int64_t k = 0;
  if (!Add && p.after_one) {
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
#pragma GCC unroll 4
      for (int n = 0; n < Vectors; ++n) {
        sum[0][m][n] = Row == 1 ? splat<T>(a[m]) : load(b + n * kLanes<T>);
      }
    }
    a += step;
    b += b_stride;
    ++k;
  }
#pragma GCC unroll 1
  for (; k + kCuts <= p.depth; k += kCuts) {
#pragma GCC unroll 4
    for (int cut = 0; cut < kCuts; ++cut) {
      V<T> right[Vectors];
#pragma GCC unroll 4
      for (int n = 0; n < Vectors; ++n) {
        right[n] = load(b + n * kLanes<T>);
        hold<T, Rows>(right[n]);
      }
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

template <class T, int Rows, int Vectors, int Row, bool Add>
void block_function(const Product<T>& p, const T* a, const T* b, int64_t b_stride, T* c) {
  multiply_block<T, Rows, Vectors, Row, Add>(p, a, b, b_stride, c);
}

// Functions for 1 to Rows rows and one or two vectors.
template <class T, int Rows, int Row, bool Add>
struct BlockFunctions {
  Block<T> of[Rows][2];
  constexpr BlockFunctions() : of{} { fill<Rows>(); }
  template <int R>
  constexpr void fill() {
    of[R - 1][0] = &block_function<T, R, 1, Row, Add>;
    of[R - 1][1] = &block_function<T, R, 2, Row, Add>;
    if constexpr (R > 1) fill<R - 1>();
  }
};

template <class T>
void multiply_left(const Product<T>& p) {
  static constexpr BlockFunctions<T, kBlock, 1, false> kFunctions;
  const Blocks blocks(p.rows, kBlock);
  for (int64_t n = 0; n < p.columns;) {
    const int64_t width = panel_columns(p.columns, kLanes<T>, n);
    const T* a = p.a;
    Product<T> part = p;
    for (int64_t m = 0; m < p.rows;) {
      const int64_t size = blocks.at(m);
      part.a_stride = size;
      kFunctions.of[size - 1][width > kLanes<T>](part, a, p.b + n, p.b_stride,
                                                 p.c + m * p.c_stride + n);
      a += size * p.depth;
      m += size;
    }
    n += width;
  }
}

template <class T>
void multiply_right(const Product<T>& p) {
  static constexpr BlockFunctions<T, kNarrow, 0, false> kFunctions;
  const Blocks blocks(p.rows, kNarrow);
  const T* b = p.b;
  for (int64_t n = 0; n < p.columns;) {
    const int64_t width = panel_columns(p.columns, kLanes<T>, n);
    for (int64_t m = 0; m < p.rows;) {
      const int64_t size = blocks.at(m);
      kFunctions.of[size - 1][width > kLanes<T>](p, p.a + m * p.a_stride, b, width,
                                                 p.c + m * p.c_stride + n);
      m += size;
    }
    b += width * p.depth;
    n += width;
  }
}

template <class T, int Row>
INLINE void accumulate_rows(const Product<T>& p) {
  static constexpr BlockFunctions<T, kBlock, Row, true> kFunctions;
  const Blocks blocks(p.rows, kBlock);
  for (int64_t m = 0; m < p.rows;) {
    const int64_t size = blocks.at(m);
    for (int64_t n = 0; n < p.columns;) {
      const int64_t width = panel_columns(p.columns, kLanes<T>, n);
      kFunctions.of[size - 1][width > kLanes<T>](p, p.a + m * Row, p.b + n, p.b_stride,
                                                 p.c + m * p.c_stride + n);
      n += width;
    }
    m += size;
  }
}

template <class T>
void accumulate(const Product<T>& p) {
  accumulate_rows<T, 1>(p);
}

template <class T>
void accumulate_across(const Product<T>& p) {
  if (p.a_stride == kLanes<T>) return accumulate_rows<T, kLanes<T>>(p);
  accumulate_rows<T, 2 * kLanes<T>>(p);
}

// Rows of which two vectors each stay in registers.
constexpr int kFew = 6;

template <class T, int Few, int Vectors>
void add_lanes(const T* a, const T* b, int64_t many, T* sums) {
  constexpr int kColumns = Vectors * kLanes<T>;
  V<T> left[Few][Vectors];
#pragma GCC unroll 16
  for (int j = 0; j < Few; ++j) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) left[j][v] = load(a + j * kColumns + v * kLanes<T>);
  }
  for (int64_t i = 0; i < many; ++i, b += kColumns) {
    V<T> right[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) right[v] = load(b + v * kLanes<T>);
#pragma GCC unroll 16
    for (int j = 0; j < Few; ++j, sums += kLanes<T>) {
      V<T> sum = load(sums);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum += left[j][v] * right[v];
      store<T>(sums, sum);
    }
  }
}

template <class T>
using AddLanes = void (*)(const T*, const T*, int64_t, T*);

template <class T>
void accumulate_lanes(const T* a, int64_t few, const T* b, int64_t many, int64_t columns, T* sums) {
  static constexpr AddLanes<T> kFunctions[kFew][2] = {
      {&add_lanes<T, 1, 1>, &add_lanes<T, 1, 2>}, {&add_lanes<T, 2, 1>, &add_lanes<T, 2, 2>},
      {&add_lanes<T, 3, 1>, &add_lanes<T, 3, 2>}, {&add_lanes<T, 4, 1>, &add_lanes<T, 4, 2>},
      {&add_lanes<T, 5, 1>, &add_lanes<T, 5, 2>}, {&add_lanes<T, 6, 1>, &add_lanes<T, 6, 2>}};
  kFunctions[few - 1][columns > kLanes<T>](a, b, many, sums);
}
