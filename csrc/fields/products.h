// Matrix products of generated fields. Included inside a namespace (runtime.h). Sizes and strides
// are known to the compiler. Values of samples are packs of vectors, a sample in each lane, or,
// with one lane, plain numbers; values for all samples are numbers.
#pragma once

// Lanes First, First + Step, ... of the vector that a and b make together.
template <int First, int Step, size_t... J>
INLINE V<Number> picked(V<Number> a, V<Number> b, std::index_sequence<J...>) {
  return __builtin_shufflevector(a, b, (First + Step * int(J))...);
}
// a_0 b_0 a_1 b_1 ... of the lower or upper halves.
template <int From, size_t... J>
INLINE V<Number> interleaved(V<Number> a, V<Number> b, std::index_sequence<J...>) {
  constexpr int L = kLanes<Number>;
  return __builtin_shufflevector(a, b, (From + int(J) / 2 + (J % 2 ? L : 0))...);
}

// The sum of the lanes of each of L vectors, in the order of the vectors.
INLINE V<Number> sums_of(V<Number> (&v)[kLanes<Number>]) {
  constexpr int L = kLanes<Number>;
  constexpr auto kAll = std::make_index_sequence<L>{};
#pragma GCC unroll 8
  for (int count = L; count > 1; count /= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < count / 2; ++i) {
      v[i] =
          picked<0, 2>(v[2 * i], v[2 * i + 1], kAll) + picked<1, 2>(v[2 * i], v[2 * i + 1], kAll);
    }
  }
  return v[0];
}

// Rows become columns.
INLINE void transpose(V<Number> (&v)[kLanes<Number>]) {
  constexpr int L = kLanes<Number>;
  constexpr auto kAll = std::make_index_sequence<L>{};
#pragma GCC unroll 8
  for (int round = 1; round < L; round *= 2) {
    V<Number> next[L];
#pragma GCC unroll 16
    for (int i = 0; i < L / 2; ++i) {
      next[2 * i] = interleaved<0>(v[i], v[i + L / 2], kAll);
      next[2 * i + 1] = interleaved<L / 2>(v[i], v[i + L / 2], kAll);
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) v[i] = next[i];
  }
}

INLINE Number sum_of(V<Number> x) {
  Number part[kLanes<Number>];
  store<Number>(part, x);
#pragma GCC unroll 8
  for (int half = kLanes<Number> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) part[i] += part[i + half];
  }
  return part[0];
}
template <int K>
INLINE V<Number> vectors_of(X<Number, K> x) {
  V<Number> total = x.v[0];
  for (int i = 1; i < K; ++i) total = total + x.v[i];
  return total;
}
template <int K>
INLINE Number sum_lanes(X<Number, K> x) {
  return sum_of(vectors_of(x));
}
INLINE Number sum_lanes(Number x) { return x; }

// to[i] += the sum of the lanes of at(i) for N packs.
template <int N, class F>
INLINE void add_sums(Number* to, F at) {
  constexpr int L = kLanes<Number>;
  int i = 0;
  for (; i + L <= N; i += L) {
    V<Number> v[L];
#pragma GCC unroll 16
    for (int j = 0; j < L; ++j) v[j] = vectors_of(at(i + j));
    store<Number>(to + i, load(to + i) + sums_of(v));
  }
  for (; i < N; ++i) to[i] += sum_lanes(at(i));
}

// Sums that fit the registers at a time.
constexpr int kAccumulators = kBytes == 64 ? 24 : 12;

template <int M, int K, int N>
struct Sizes {};
template <int Rows, int Columns>
struct Strides {};

template <int Count>
INLINE V<Number> load_part(const Number* from) {
  V<Number> x = {};
  __builtin_memcpy(&x, from, Count * sizeof(Number));
  return x;
}

// Where there is no bias.
struct NoBias {
  INLINE Number at(int, int) const { return 0; }
};
template <class B, int Rows, int Columns>
struct Bias {
  const B* from;
  INLINE B at(int m, int n) const { return from[m * Rows + n * Columns]; }
};

// out[m, n] = bias[m, n] + sum_k a[m, k] b[k, n] of packs `a` and numbers `b`, or of two packs.
template <int Block, int K, int AK, int BK, int BN, int ON, class A, class B, class F>
INLINE void product_row(const A* a, const B* b, A* out, F bias) {
  A sum[Block];
#pragma GCC unroll 24
  for (int j = 0; j < Block; ++j) {
    if constexpr (kNumber<decltype(bias(0))>)
      sum[j] = lift(bias(j), A{});
    else
      sum[j] = bias(j);
  }
  for (int k = 0; k < K; ++k) {
    const A x = a[k * AK];
#pragma GCC unroll 24
    for (int j = 0; j < Block; ++j) sum[j] = sum[j] + x * b[k * BK + j * BN];
  }
#pragma GCC unroll 24
  for (int j = 0; j < Block; ++j) out[j * ON] = sum[j];
}

template <int M, int K, int N, int AM, int AK, int BK, int BN, int OM, int ON, class A, class B,
          class Start>
__attribute__((noinline)) void product(Sizes<M, K, N>, const A* a, Strides<AM, AK>, const B* b,
                                       Strides<BK, BN>, A* out, Strides<OM, ON>, Start bias) {
  constexpr int kMost = kAccumulators / (sizeof(A) / kBytes);
  constexpr int kBlock =
      N < kMost ? N : (N % kMost && N % (kMost / 3 * 2) == 0 ? kMost / 3 * 2 : kMost);
  for (int m = 0; m < M; ++m) {
    const auto at = [&](int n) INLINE_LAMBDA {
      return [&, n](int j) INLINE_LAMBDA { return bias.at(m, n + j); };
    };
    int n = 0;
    for (; n + kBlock <= N; n += kBlock) {
      product_row<kBlock, K, AK, BK, BN, ON>(a + m * AM, b + n * BN, out + m * OM + n * ON, at(n));
    }
    if constexpr (N % kBlock != 0) {
      product_row<N % kBlock, K, AK, BK, BN, ON>(a + m * AM, b + n * BN, out + m * OM + n * ON,
                                                 at(n));
    }
  }
}

// The same where `a` are numbers and `b` packs: the transpose.
template <int M, int K, int N, int AM, int AK, int BK, int BN, int OM, int ON, class B, class Start>
INLINE void product(Sizes<M, K, N>, const Number* a, Strides<AM, AK>, const B* b, Strides<BK, BN>,
                    B* out, Strides<OM, ON>, Start bias)
  requires(!kNumber<B>)
{
  struct Turned {
    Start bias;
    INLINE auto at(int m, int n) const { return bias.at(n, m); }
  };
  product(Sizes<N, K, M>{}, b, Strides<BN, BK>{}, a, Strides<AK, AM>{}, out, Strides<ON, OM>{},
          Turned{bias});
}

// Numbers alone. Rows of b that lie side by side are added up by vectors, columns that do by dot
// products.
template <int M, int K, int N, int AM, int AK, int BK, int BN, int OM, int ON, class Start>
__attribute__((noinline)) void product(Sizes<M, K, N>, const Number* __restrict a, Strides<AM, AK>,
                                       const Number* __restrict b, Strides<BK, BN>,
                                       Number* __restrict out, Strides<OM, ON>, Start bias) {
  constexpr int L = kLanes<Number>;
  for (int m = 0; m < M; ++m) {
    const Number* const x = a + m * AM;
    Number* const y = out + m * OM;
    int n = 0;
    if constexpr (BN == 1) {
      // Up to eight vectors of sums.
      const auto columns = [&]<int Vectors>(Size<Vectors>) INLINE_LAMBDA {
        for (; n + Vectors * L <= N; n += Vectors * L) {
          X<Number, Vectors> sum = all<Number, Vectors>(0);
          for (int k = 0; k < K; ++k) {
            sum = sum + load_pack<Number, Vectors>(b + k * BK + n) * x[k * AK];
          }
          Number found[Vectors * L];
          store_pack<Number, Vectors>(found, sum);
          for (int j = 0; j < Vectors * L; ++j) y[(n + j) * ON] = found[j] + bias.at(m, n + j);
        }
      };
      columns(Size<8>{});
      columns(Size<4>{});
      columns(Size<1>{});
    } else if constexpr (BK == 1 && AK == 1 && K >= L / 2) {
      const auto rows = [&]<int Rows>(Size<Rows>) INLINE_LAMBDA {
        for (; n + Rows <= N; n += Rows) {
          V<Number> sum[L] = {};
          constexpr int kWhole = K / L * L;
          for (int k = 0; k < kWhole; k += L) {
            const V<Number> part = load(x + k);
#pragma GCC unroll 16
            for (int j = 0; j < Rows; ++j) sum[j] = sum[j] + part * load(b + (n + j) * BN + k);
          }
          if constexpr (K % L != 0) {
            const V<Number> part = load_part<K % L>(x + kWhole);
#pragma GCC unroll 16
            for (int j = 0; j < Rows; ++j) {
              sum[j] = sum[j] + part * load_part<K % L>(b + (n + j) * BN + kWhole);
            }
          }
          Number found[L];
          store<Number>(found, sums_of(sum));
          for (int j = 0; j < Rows; ++j) y[(n + j) * ON] = found[j] + bias.at(m, n + j);
        }
      };
      rows(Size<L>{});
      if constexpr (L > 8) rows(Size<8>{});
      rows(Size<L / 2 < 4 ? L / 2 : 4>{});
      rows(Size<1>{});
    }
    for (; n < N; ++n) {
      Number total = bias.at(m, n);
      for (int k = 0; k < K; ++k) total += x[k * AK] * b[k * BK + n * BN];
      y[n * ON] = total;
    }
  }
}

// to[m, n] += sum over k and lanes of a[m, k] b[k, n]. `b` is turned so that its columns lie side
// by side, a block of them at a time; then it is an ordinary product whose depth are the samples.
template <int M, int N, int AM, int BN, int ToM, class P>
INLINE void outer_rows(const P* a, const P* b, Number* to) {
  constexpr int L = kLanes<Number>, kWidth = sizeof(P) / sizeof(Number);
  constexpr int kColumns = N < 128 ? N : 128, kPadded = (kColumns + L - 1) / L * L;
  constexpr int kRows = kBytes == 64 ? 8 : 4;
  alignas(64) Number turned[kWidth][kPadded];
  const Number* const left = reinterpret_cast<const Number*>(a);
  for (int from = 0; from < N; from += kColumns) {
    const int count = N - from < kColumns ? N - from : kColumns;
    int turned_to = 0;
    for (; turned_to + L <= count; turned_to += L) {
      for (int s = 0; s < kWidth; s += L) {
        V<Number> v[L];
#pragma GCC unroll 16
        for (int j = 0; j < L; ++j) {
          v[j] = load(reinterpret_cast<const Number*>(b + (from + turned_to + j) * BN) + s);
        }
        transpose(v);
#pragma GCC unroll 16
        for (int j = 0; j < L; ++j) store<Number>(&turned[s + j][turned_to], v[j]);
      }
    }
    const auto block = [&]<int Rows>(Size<Rows>, int m) INLINE_LAMBDA {
      int n = 0;
      for (; n + L <= count; n += L) {
        V<Number> sum[Rows];
        for (int j = 0; j < Rows; ++j) sum[j] = load(to + (m + j) * ToM + from + n);
        for (int s = 0; s < kWidth; ++s) {
          const V<Number> x = load(&turned[s][n]);
#pragma GCC unroll 8
          for (int j = 0; j < Rows; ++j) sum[j] = sum[j] + x * left[(m + j) * AM * kWidth + s];
        }
        for (int j = 0; j < Rows; ++j) store<Number>(to + (m + j) * ToM + from + n, sum[j]);
      }
      for (; n < count; ++n) {
        for (int j = 0; j < Rows; ++j) {
          to[(m + j) * ToM + from + n] += sum_lanes(a[(m + j) * AM] * b[(from + n) * BN]);
        }
      }
    };
    int m = 0;
    for (; m + kRows <= M; m += kRows) block(Size<kRows>{}, m);
    for (; m < M; ++m) block(Size<1>{}, m);
  }
}

// to += factor x
template <int N>
INLINE void add_row(const Number* x, Number factor, Number* to) {
  constexpr int L = kLanes<Number>;
  int i = 0;
  for (; i + L <= N; i += L) store<Number>(to + i, load(to + i) + load(x + i) * factor);
  for (; i < N; ++i) to[i] += x[i] * factor;
}

template <int M, int K, int N, int AM, int AK, int BK, int BN, int ToM, int ToN, class P>
__attribute__((noinline)) void outer(Sizes<M, K, N>, const P* a, Strides<AM, AK>, const P* b,
                                     Strides<BK, BN>, Number* to, Strides<ToM, ToN>) {
  for (int k = 0; k < K; ++k) {
    if constexpr (!kNumber<P>) {
      if constexpr (ToN == 1)
        outer_rows<M, N, AM, BN, ToM>(a + k * AK, b + k * BK, to);
      else if constexpr (ToM == 1)
        outer_rows<N, M, BN, AM, ToN>(b + k * BK, a + k * AK, to);
    }
    if constexpr (kNumber<P> && ToN == 1 && BN == 1) {
      for (int m = 0; m < M; ++m) add_row<N>(b + k * BK, a[m * AM + k * AK], to + m * ToM);
    } else if constexpr (kNumber<P> && ToM == 1 && AM == 1) {
      for (int n = 0; n < N; ++n) add_row<M>(a + k * AK, b[k * BK + n * BN], to + n * ToN);
    } else if constexpr (kNumber<P> || (ToN != 1 && ToM != 1)) {
      for (int m = 0; m < M; ++m) {
        const P x = a[m * AM + k * AK];
        for (int n = 0; n < N; ++n) to[m * ToM + n * ToN] += sum_lanes(x * b[k * BK + n * BN]);
      }
    }
  }
}

// Of packs and numbers: the sum over the lanes comes first.
template <int M, int K, int N, int AM, int AK, int BK, int BN, int ToM, int ToN, class P>
__attribute__((noinline)) void outer(Sizes<M, K, N>, const P* a, Strides<AM, AK>, const Number* b,
                                     Strides<BK, BN>, Number* to, Strides<ToM, ToN>)
  requires(!kNumber<P>)
{
  for (int k = 0; k < K; ++k) {
    for (int m = 0; m < M; ++m) {
      const Number x = sum_lanes(a[m * AM + k * AK]);
      for (int n = 0; n < N; ++n) to[m * ToM + n * ToN] += x * b[k * BK + n * BN];
    }
  }
}
template <int M, int K, int N, int AM, int AK, int BK, int BN, int ToM, int ToN, class P>
INLINE void outer(Sizes<M, K, N>, const Number* a, Strides<AM, AK>, const P* b, Strides<BK, BN>,
                  Number* to, Strides<ToM, ToN>)
  requires(!kNumber<P>)
{
  outer(Sizes<N, K, M>{}, b, Strides<BN, BK>{}, a, Strides<AK, AM>{}, to, Strides<ToN, ToM>{});
}
