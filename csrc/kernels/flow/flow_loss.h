// flow_loss: r = v - (a' z0 + b' z1), the sum of r^2, and a multiple of r as the gradient for v.
#pragma once

#include <cstdint>

#include "common/scalar.h"

namespace fastnode {

template <class A>
FASTNODE_HD A residual(A v, A z0, A z1, A da, A db) {
  return v - (da * z0 + db * z1);
}

// The sum of r^2 over the elements [begin, end) of [batch, dim] tensors; where grad is not null,
// grad = grad_scale * r. da and db hold one coefficient a sample.
// Where z1 is null, z0 is the target itself. `stream`: write grad past the cache (scalar.h).
#define FASTNODE_DECLARE_FLOW_LOSS(T)                                                 \
  double flow_loss_range(const T* v, const T* z0, const T* z1, const acc_t<T>* da,    \
                         const acc_t<T>* db, int64_t dim, int64_t begin, int64_t end, \
                         acc_t<T> grad_scale, bool stream, T* grad);
FASTNODE_DECLARE_FLOW_LOSS(float)
FASTNODE_DECLARE_FLOW_LOSS(double)
FASTNODE_DECLARE_FLOW_LOSS(BFloat16)
FASTNODE_DECLARE_FLOW_LOSS(Half)
#undef FASTNODE_DECLARE_FLOW_LOSS

}  // namespace fastnode
