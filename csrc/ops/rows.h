// Arguments of ops whose rows have numbers of their own.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

namespace fastnode {

inline void check_samples(const at::Tensor& y) {
  TORCH_CHECK_VALUE(y.dim() > 0, "the state must have shape [B, ...], got a scalar");
}

inline void check_rows(const at::Tensor& x, const at::Tensor& y, const char* name,
                       at::IntArrayRef shape) {
  TORCH_CHECK_TYPE(x.scalar_type() == at::kDouble, name, " must be float64, got ", x.scalar_type());
  TORCH_CHECK_VALUE(x.sizes() == shape, name, " must have shape ", shape, ", got ", x.sizes());
  TORCH_CHECK_VALUE(x.device() == y.device(), name, " must be on the state's device ", y.device(),
                    ", got ", x.device());
}

// One float64 number a row, side by side in memory.
inline at::Tensor numbers_of_rows(const at::Tensor& x, const at::Tensor& y, const char* name) {
  check_rows(x, y, name, y.sizes().slice(0, x.dim() == 0 ? 0 : 1));
  return x.expand({y.size(0)}).contiguous();
}

inline int64_t row_length(const at::Tensor& y) {
  return y.size(0) == 0 ? 0 : y.numel() / y.size(0);
}

}  // namespace fastnode
