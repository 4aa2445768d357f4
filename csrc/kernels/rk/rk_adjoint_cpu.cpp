#include <algorithm>

#include "kernels/rk/rk_adjoint.h"

namespace fastnode {
namespace {

// As in rk_stage_cpu.cpp.
constexpr int64_t kBlock = 512;

template <class T>
FASTNODE_HD void rk_adjoint_blocks(const T* base, const Terms<T>& terms, int64_t begin, int64_t end,
                                   T* out) {
  using A = acc_t<T>;
  A sum[kBlock];
  for (int64_t start = begin; start < end; start += kBlock) {
    const int64_t n = std::min(kBlock, end - start);
    if (base == nullptr) {
      for (int64_t i = 0; i < n; ++i) sum[i] = 0;
    } else {
      for (int64_t i = 0; i < n; ++i) sum[i] = load(base[start + i]);
    }
    add_terms(sum, terms.k, terms.c, terms.count, start, n);
    T* __restrict__ to = out + start;
    for (int64_t i = 0; i < n; ++i) to[i] = store<T>(sum[i]);
  }
}

}  // namespace

#define FASTNODE_DEFINE_RK_ADJOINT(T)                                                     \
  FASTNODE_CLONES                                                                         \
  void rk_adjoint_range(const T* base, const Terms<T>& terms, int64_t begin, int64_t end, \
                        T* out) {                                                         \
    rk_adjoint_blocks(base, terms, begin, end, out);                                      \
  }
FASTNODE_DEFINE_RK_ADJOINT(float)
FASTNODE_DEFINE_RK_ADJOINT(double)
FASTNODE_DEFINE_RK_ADJOINT(BFloat16)
FASTNODE_DEFINE_RK_ADJOINT(Half)
#undef FASTNODE_DEFINE_RK_ADJOINT

}  // namespace fastnode
