// Kernels of a multilayer perceptron on a tile of samples: matrix products, activations and
// Runge-Kutta arithmetic. One table of them for each instruction set, chosen at run time.
#pragma once

#include <cstdint>

namespace fastnode {

// The order of fastnode.engines.fused.mlp.ACTIVATIONS.
enum class Activation : int {
  kElu,
  kGelu,
  kLeakyRelu,
  kRelu,
  kSelu,
  kSigmoid,
  kSilu,
  kSin,
  kSoftplus,
  kTanh
};
constexpr int kActivations = 10;

// LeakyReLU below zero, as torch has it by default; SELU above zero, and below it times
// exp(x) - 1 (Klambauer et al., NeurIPS 2017, arXiv 1706.02515).
constexpr double kLeakySlope = 0.01, kSeluScale = 1.0507009873554804934193349852946,
                 kSeluDepth = 1.6732632423543772848170429916717 * kSeluScale;

// c[m, n] (+)= sum_k a(m, k) b[k, n] for whole vectors of n.
template <class T>
struct Product {
  int64_t rows, columns, depth;
  // Rows side by side: element (m, k) of a block of rows that starts at `a` is a[k a_stride + m],
  // and the next block follows after depth times its rows if it was packed. Otherwise it is
  // a[m a_stride + k], for the few rows of a small batch.
  const T* a;
  int64_t a_stride;
  const T* b;
  int64_t b_stride;  // from k to k + 1; 0 for panels made by pack_right
  T* c;
  int64_t c_stride;
  // Whether the first number of each sum's factor that is not packed is one, as that of a bias: it
  // is neither read nor multiplied with. For packed products alone.
  bool after_one = false;
};

// Rectangles of numbers: `columns`, a multiple of a vector, in each of `rows` rows.
struct Extent {
  int64_t rows, columns, stride;
};

template <class T>
struct MlpKernels {
  const char* name;
  int lanes;   // numbers in a vector
  int block;   // rows of c that are made at once
  int narrow;  // the same where a is not packed by rows
  int few;     // rows that accumulate_lanes takes at most

  // a packed by pack_left; b as it lies.
  void (*multiply_left)(const Product<T>&);
  // a[m a_stride + k]; b packed by pack_right.
  void (*multiply_right)(const Product<T>&);
  // c += a b with a[k a_stride + m]; nothing packed.
  void (*accumulate)(const Product<T>&);
  // The same with a[m a_stride + k], where a_stride is one or two vectors.
  void (*accumulate_across)(const Product<T>&);
  // sums[i, j, lane] += sum_v b[i, v lanes + lane] a[j, v lanes + lane], for `few` rows of a and
  // `many` of b of one or two vectors.
  void (*accumulate_lanes)(const T* a, int64_t few, const T* b, int64_t many, int64_t columns,
                           T* sums);

  // a = activation(z) in place, or with z kept where `out` differs.
  void (*activate)(Activation, const T* z, T* out, const Extent&);
  // g *= activation'(z), where a is activation(z).
  void (*derive)(Activation, const T* z, const T* a, T* g, const Extent&);

  // out = y + sum_j c_j k_j; without y where it is null, and y may be `out` for up to 8 terms. c is
  // [count] or, `by_column`, has a weight for each column: [count, columns].
  void (*combine)(const T* y, const T* const* k, const T* c, bool by_column, int count,
                  const Extent&, T* out);
  // to[column t_stride + row] = from[row columns + column] for whole vectors of columns.
  void (*transpose)(const T* from, int64_t rows, int64_t columns, T* to, int64_t t_stride);
  // For each column the sum over rows of (sum_j c_j k_j / (atol + rtol max(|y0|, |y1|)))^2, with
  // weights and tolerances for each of them too if `by_column`.
  void (*error)(const T* y0, const T* y1, const T* const* k, const T* c, const T* rtol,
                const T* atol, bool by_column, int count, const Extent&, T* sums);
};

enum class InstructionSet : int { kBaseline, kV3, kV4 };

// Null if the machine lacks it.
template <class T>
const MlpKernels<T>* mlp_kernels(InstructionSet which);

// Rows cut into blocks of at most `largest` and about one size: the first ones are longer.
class Blocks {
 public:
  Blocks(int64_t rows, int64_t largest) {
    const int64_t blocks = (rows + largest - 1) / largest;
    size_ = rows / blocks;
    longer_ = rows % blocks * (size_ + 1);
  }
  // Rows of the block that begins at `row`.
  int64_t at(int64_t row) const { return row < longer_ ? size_ + 1 : size_; }

 private:
  int64_t size_, longer_;
};

// `unit` is a power of two: no division, as every evaluation of a field calls it.
inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) & -unit; }

// The matrix w[m row + k column] for multiply_left: rows * depth numbers.
template <class T>
void pack_left(const T* w, int64_t row, int64_t column, int64_t rows, int64_t depth, int block,
               T* out) {
  const Blocks blocks(rows, block);
  for (int64_t m = 0; m < rows;) {
    const int64_t size = blocks.at(m);
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t i = 0; i < size; ++i) *out++ = w[(m + i) * row + k * column];
    }
    m += size;
  }
}

// Columns of a panel for multiply_right that begins at column n.
inline int64_t panel_columns(int64_t columns, int64_t lanes, int64_t n) {
  return columns - n > lanes ? 2 * lanes : lanes;
}

// The matrix w[k row + n column] for multiply_right: depth * round_up(columns, lanes) numbers.
template <class T>
void pack_right(const T* w, int64_t row, int64_t column, int64_t depth, int64_t columns,
                int64_t lanes, T* out) {
  for (int64_t n = 0; n < columns;) {
    const int64_t size = panel_columns(columns, lanes, n);
    for (int64_t k = 0; k < depth; ++k) {
      const int64_t there = n + size < columns ? size : columns - n;
      for (int64_t i = 0; i < there; ++i) *out++ = w[k * row + (n + i) * column];
      for (int64_t i = there; i < size; ++i) *out++ = 0;
    }
    n += size;
  }
}

}  // namespace fastnode
