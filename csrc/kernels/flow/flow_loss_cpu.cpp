#include <algorithm>

#include "kernels/flow/flow_loss.h"

namespace fastnode {
namespace {

// kBlock independent partial sums hide the latency of the addition in four vectors of 512 bits, and
// give one order of summation whatever the instruction set.
// Stored: z0 is the target, and z1, da and db are null.
template <bool WithGrad, bool Stored, class T>
FASTNODE_HD void residual_one(const T* v, const T* z0, const T* z1, acc_t<T> da, acc_t<T> db,
                              acc_t<T> grad_scale, int64_t i, acc_t<T>* sum, T* grad) {
  using A = acc_t<T>;
  A r;
  if constexpr (Stored) {
    r = A(load(v[i])) - A(load(z0[i]));
  } else {
    r = residual(A(load(v[i])), A(load(z0[i])), A(load(z1[i])), da, db);
  }
  *sum += r * r;
  if constexpr (WithGrad) *grad = store<T>(grad_scale * r);
}

template <bool WithGrad, bool Stored, class T>
FASTNODE_HD double flow_loss_rows(const T* __restrict__ v, const T* __restrict__ z0,
                                  const T* __restrict__ z1, const acc_t<T>* da, const acc_t<T>* db,
                                  int64_t dim, int64_t begin, int64_t end, acc_t<T> grad_scale,
                                  bool stream, T* __restrict__ grad) {
  using A = acc_t<T>;
  A sums[kBlock] = {};
  for (int64_t i = begin; i < end;) {
    const int64_t row = i / dim;
    const int64_t stop = std::min(end, (row + 1) * dim);
    const A a = Stored ? A(0) : da[row], b = Stored ? A(0) : db[row];
    if (stream) {
      for (int k = 0; i < stop && !streamable(grad + i); ++i, ++k) {
        residual_one<WithGrad, Stored>(v, z0, z1, a, b, grad_scale, i, sums + k, grad + i);
      }
      alignas(64) T block[kBlock];
      for (; i + kBlock <= stop; i += kBlock) {
        for (int k = 0; k < kBlock; ++k) {
          residual_one<WithGrad, Stored>(v, z0, z1, a, b, grad_scale, i + k, sums + k, block + k);
        }
        if constexpr (WithGrad) stream_block(grad + i, block);
      }
    }
    for (; i + kBlock <= stop; i += kBlock) {
      for (int k = 0; k < kBlock; ++k) {
        residual_one<WithGrad, Stored>(v, z0, z1, a, b, grad_scale, i + k, sums + k, grad + i + k);
      }
    }
    for (int k = 0; i < stop; ++i, ++k) {
      residual_one<WithGrad, Stored>(v, z0, z1, a, b, grad_scale, i, sums + k, grad + i);
    }
  }
  double total = 0;
  for (int k = 0; k < kBlock; ++k) total += double(sums[k]);
  return total;
}

}  // namespace

#define FASTNODE_DEFINE_FLOW_LOSS(T)                                                          \
  FASTNODE_CLONES                                                                             \
  double flow_loss_range(const T* v, const T* z0, const T* z1, const acc_t<T>* da,            \
                         const acc_t<T>* db, int64_t dim, int64_t begin, int64_t end,         \
                         acc_t<T> grad_scale, bool stream, T* grad) {                         \
    auto rows = [&]<bool WithGrad, bool Stored>() __attribute__((always_inline)) {            \
      return flow_loss_rows<WithGrad, Stored>(v, z0, z1, da, db, dim, begin, end, grad_scale, \
                                              stream, grad);                                  \
    };                                                                                        \
    if (z1 == nullptr) {                                                                      \
      return grad != nullptr ? rows.template operator()<true, true>()                         \
                             : rows.template operator()<false, true>();                       \
    }                                                                                         \
    return grad != nullptr ? rows.template operator()<true, false>()                          \
                           : rows.template operator()<false, false>();                        \
  }
FASTNODE_DEFINE_FLOW_LOSS(float)
FASTNODE_DEFINE_FLOW_LOSS(double)
FASTNODE_DEFINE_FLOW_LOSS(BFloat16)
FASTNODE_DEFINE_FLOW_LOSS(Half)
#undef FASTNODE_DEFINE_FLOW_LOSS

}  // namespace fastnode
