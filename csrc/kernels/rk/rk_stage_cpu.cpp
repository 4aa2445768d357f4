#include <algorithm>

#include "kernels/rk/rk_stage.h"

namespace fastnode {
namespace {

// Sums of this many elements stay in the first-level cache while the stages pass by one after the
// other: any number of stages, and every loop is plain vector code.
constexpr int64_t kBlock = 512;

// A few stages at once, with the sums in registers.
template <int Count, class T>
FASTNODE_HD void rk_stage_pass(const T* __restrict__ y, const Terms<T>& terms, int64_t begin,
                               int64_t end, T* __restrict__ out) {
  using A = acc_t<T>;
  const T* __restrict__ from[Count];
  A weight[Count];
  for (int j = 0; j < Count; ++j) {
    from[j] = terms.k[j];
    weight[j] = terms.c[j];
  }
  for (int64_t i = begin; i < end; ++i) {
    A total = 0;
    for (int j = 0; j < Count; ++j) total = add_term(total, weight[j], A(load(from[j][i])));
    out[i] = store<T>(load(y[i]) + total);
  }
}

template <class T>
FASTNODE_HD void rk_stage_blocks(const T* __restrict__ y, const Terms<T>& terms, int64_t begin,
                                 int64_t end, T* __restrict__ out) {
  using A = acc_t<T>;
  A sum[kBlock];
  for (int64_t start = begin; start < end; start += kBlock) {
    const int64_t n = std::min(kBlock, end - start);
    for (int64_t i = 0; i < n; ++i) sum[i] = 0;
    add_terms(sum, terms.k, terms.c, terms.count, start, n);
    for (int64_t i = 0; i < n; ++i) out[start + i] = store<T>(load(y[start + i]) + sum[i]);
  }
}

template <class T>
FASTNODE_HD void rk_stage_any(const T* y, const Terms<T>& terms, int64_t begin, int64_t end,
                              T* out) {
  switch (terms.count) {
    case 0:  // -0 + 0 would be 0
      std::copy(y + begin, y + end, out + begin);
      return;
    case 1:
      return rk_stage_pass<1>(y, terms, begin, end, out);
    case 2:
      return rk_stage_pass<2>(y, terms, begin, end, out);
    case 3:
      return rk_stage_pass<3>(y, terms, begin, end, out);
    case 4:
      return rk_stage_pass<4>(y, terms, begin, end, out);
    default:
      return rk_stage_blocks(y, terms, begin, end, out);
  }
}

}  // namespace

#define FASTNODE_DEFINE_RK_STAGE(T)                                                            \
  FASTNODE_CLONES                                                                              \
  void rk_stage_range(const T* y, const Terms<T>& terms, int64_t begin, int64_t end, T* out) { \
    rk_stage_any(y, terms, begin, end, out);                                                   \
  }
FASTNODE_DEFINE_RK_STAGE(float)
FASTNODE_DEFINE_RK_STAGE(double)
FASTNODE_DEFINE_RK_STAGE(BFloat16)
FASTNODE_DEFINE_RK_STAGE(Half)
#undef FASTNODE_DEFINE_RK_STAGE

}  // namespace fastnode
