#include <algorithm>

#include "kernels/rk/rk_dense.h"

namespace fastnode {
namespace {

// A block of the state and of every stage stays in the first-level cache while all rows are made
// from it, so that memory is read once however many rows there are.
constexpr int64_t kBlock = 256;

template <class T>
FASTNODE_HD void rk_dense_blocks(const T* __restrict__ y, const Terms<T>& terms,
                                 const acc_t<T>* __restrict__ c, int64_t m, int64_t out_stride,
                                 int64_t begin, int64_t end, T* __restrict__ out) {
  using A = acc_t<T>;
  // 16-bit floats are converted once for all rows.
  constexpr bool kNarrow = sizeof(T) < sizeof(A);
  A converted[kNarrow ? (kMaxTerms + 1) * kBlock : 1];
  A sum[kBlock];
  const int count = terms.count;
  for (int64_t start = begin; start < end; start += kBlock) {
    const int64_t n = std::min(kBlock, end - start);
    const A* state;
    const A* k[kMaxTerms];
    if constexpr (kNarrow) {
      for (int j = 0; j <= count; ++j) {
        const T* __restrict__ from = (j == 0 ? y : terms.k[j - 1]) + start;
        A* __restrict__ to = converted + j * kBlock;
        for (int64_t i = 0; i < n; ++i) to[i] = load(from[i]);
        if (j > 0) k[j - 1] = to;
      }
      state = converted;
    } else {
      for (int j = 0; j < count; ++j) k[j] = terms.k[j] + start;
      state = y + start;
    }
    for (int64_t row = 0; row < m; ++row) {
      for (int64_t i = 0; i < n; ++i) sum[i] = 0;
      add_terms(sum, k, c + row * count, count, 0, n);
      T* __restrict__ to = out + row * out_stride + start;
      for (int64_t i = 0; i < n; ++i) to[i] = store<T>(state[i] + sum[i]);
    }
  }
}

}  // namespace

#define FASTNODE_DEFINE_RK_DENSE(T)                                                    \
  FASTNODE_CLONES                                                                      \
  void rk_dense_range(const T* y, const Terms<T>& terms, const acc_t<T>* c, int64_t m, \
                      int64_t out_stride, int64_t begin, int64_t end, T* out) {        \
    rk_dense_blocks(y, terms, c, m, out_stride, begin, end, out);                      \
  }
FASTNODE_DEFINE_RK_DENSE(float)
FASTNODE_DEFINE_RK_DENSE(double)
FASTNODE_DEFINE_RK_DENSE(BFloat16)
FASTNODE_DEFINE_RK_DENSE(Half)
#undef FASTNODE_DEFINE_RK_DENSE

}  // namespace fastnode
