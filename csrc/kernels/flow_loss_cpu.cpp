#include <algorithm>

#include "kernels/flow_loss.h"

namespace fastnode {
namespace {

// Independent partial sums: enough to hide the latency of the addition in four vectors of 512 bits,
// and a fixed order of summation whatever the instruction set.
constexpr int kLanes = 64;

template <bool WithGrad, class T>
FASTNODE_HD double flow_loss_rows(const T* __restrict__ v, const T* __restrict__ z0,
                                  const T* __restrict__ z1, const acc_t<T>* da, const acc_t<T>* db,
                                  int64_t dim, int64_t begin, int64_t end, acc_t<T> grad_scale,
                                  T* __restrict__ grad) {
  using A = acc_t<T>;
  A sums[kLanes] = {};
  for (int64_t i = begin; i < end;) {
    const int64_t row = i / dim;
    const int64_t stop = std::min(end, (row + 1) * dim);
    const A a = da[row], b = db[row];
    for (; i + kLanes <= stop; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const A r =
            residual(A(load(v[i + lane])), A(load(z0[i + lane])), A(load(z1[i + lane])), a, b);
        sums[lane] += r * r;
        if constexpr (WithGrad) grad[i + lane] = store<T>(grad_scale * r);
      }
    }
    for (int lane = 0; i < stop; ++i, ++lane) {
      const A r = residual(A(load(v[i])), A(load(z0[i])), A(load(z1[i])), a, b);
      sums[lane] += r * r;
      if constexpr (WithGrad) grad[i] = store<T>(grad_scale * r);
    }
  }
  double total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += double(sums[lane]);
  return total;
}

}  // namespace

#define FASTNODE_DEFINE_FLOW_LOSS(T)                                                     \
  FASTNODE_CLONES                                                                        \
  double flow_loss_range(const T* v, const T* z0, const T* z1, const acc_t<T>* da,       \
                         const acc_t<T>* db, int64_t dim, int64_t begin, int64_t end,    \
                         acc_t<T> grad_scale, T* grad) {                                 \
    if (grad != nullptr) {                                                               \
      return flow_loss_rows<true>(v, z0, z1, da, db, dim, begin, end, grad_scale, grad); \
    }                                                                                    \
    return flow_loss_rows<false>(v, z0, z1, da, db, dim, begin, end, grad_scale, grad);  \
  }
FASTNODE_DEFINE_FLOW_LOSS(float)
FASTNODE_DEFINE_FLOW_LOSS(double)
FASTNODE_DEFINE_FLOW_LOSS(BFloat16)
FASTNODE_DEFINE_FLOW_LOSS(Half)
#undef FASTNODE_DEFINE_FLOW_LOSS

}  // namespace fastnode
