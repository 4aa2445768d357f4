// The derivative of the scaled error norm, for rk_error and rk_error_rows.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <vector>

#include "ops/common.h"

namespace fastnode {

struct NormGradients {
  at::Tensor error, y0, y1;  // the last two only where wanted
};

// A number a sample, shaped to broadcast to states of so many dimensions.
inline at::Tensor column(const at::Tensor& x, int64_t dims) {
  std::vector<c10::SymInt> shape(dims, 1);
  shape[0] = -1;
  return x.view_symint(shape);
}

// With s = atol + rtol max(|y0|, |y1|), r = error / s and norm = sqrt(mean r^2):
// d norm / d error = r / (N norm s) and d norm / d s = -r^2 / (N norm s), zero where norm is zero.
// Written in torch's operators, which know the derivatives of this in turn. Tolerance: a number,
// or a tensor that broadcasts to the state.
template <class Tolerance>
NormGradients norm_gradients(at::Tensor norm, at::Tensor upstream, const at::Tensor& y0,
                             const at::Tensor& y1, const at::Tensor& error, const Tolerance& rtol,
                             const Tolerance& atol, bool per_sample, bool for_states) {
  const at::Tensor size0 = y0.abs(), size1 = y1.abs();
  const at::Tensor scale = at::maximum(size0, size1) * rtol + atol;
  const at::Tensor ratio = error / scale;
  c10::SymInt count = y0.sym_numel();
  if (per_sample) {
    norm = column(norm, y0.dim());
    upstream = column(upstream, y0.dim());
    count = 1;
    for (int64_t d = 1; d < y0.dim(); ++d) count = count * y0.sym_size(d);
  }
  const at::Tensor nonzero = norm.ne(0);
  const at::Tensor divisor = at::where(nonzero, norm, 1.0);
  const double elements = double(count.guard_int(__FILE__, __LINE__));
  const at::Tensor factor =
      at::where(nonzero, upstream / divisor, 0.0) * (1.0 / std::max(1.0, elements));
  NormGradients grads{factor * ratio / scale, {}, {}};
  if (for_states) {
    const at::Tensor d_size = -(grads.error * ratio * rtol);
    // Where both are of one size each has half of it, as torch.maximum divides.
    const auto wide = y0.scalar_type();
    const at::Tensor share0 = size0.gt(size1).to(wide) + size0.eq(size1).to(wide) * 0.5;
    grads.y0 = d_size * share0 * y0.sgn();
    grads.y1 = d_size * (1.0 - share0) * y1.sgn();
  }
  return grads;
}

}  // namespace fastnode
