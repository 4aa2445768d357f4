// CUDA implementations of `rk_stage_rows`, `rk_error_rows` and `rk_dense_rows` (rk_rows.cpp).
#ifdef FASTNODE_WITH_CUDA

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "kernels/rk/rk_error.h"
#include "kernels/rk/rk_rows.h"
#include "ops/cuda_stream.h"
#include "ops/rows.h"
#include "ops/terms.h"

namespace fastnode {
namespace {

using at::Tensor;

void check_error(int error, const char* op) { TORCH_CHECK(error == 0, op, ": CUDA error ", error); }

Tensor rk_stage_rows_on_cuda(const Tensor& y, at::TensorList k, at::ArrayRef<double> c,
                             const Tensor& h) {
  check_samples(y);
  check_terms(k, c.size(), y);
  check_rows(h, y, "h", y.sizes().slice(0, 1));
  void* const stream = current_cuda_stream(y.device(), "rk_stage_rows");
  const c10::DeviceGuard guard(y.device());
  const Tensor state = y.contiguous(), steps = h.contiguous();
  const ContiguousTerms terms(k, c);
  Tensor out = at::empty_like(state);
  dispatch_floating(y.scalar_type(), "rk_stage_rows", [&]<class T>(T*) {
    check_error(rk_stage_rows_cuda(data<T>(state), terms.as<T>(), data<double>(steps), y.size(0),
                                   row_length(y), mutable_data<T>(out), stream),
                "rk_stage_rows");
  });
  return out;
}

Tensor rk_error_rows_on_cuda(const Tensor& y0, const Tensor& y1, at::TensorList k,
                             at::ArrayRef<double> c, const Tensor& h, const Tensor& rtol,
                             const Tensor& atol) {
  check_samples(y0);
  check_like(y1, y0, "y1");
  check_terms(k, c.size(), y0);
  check_rows(h, y0, "h", y0.sizes().slice(0, 1));
  void* const stream = current_cuda_stream(y0.device(), "rk_error_rows");
  const c10::DeviceGuard guard(y0.device());
  const Tensor relative = numbers_of_rows(rtol, y0, "rtol");
  const Tensor absolute = numbers_of_rows(atol, y0, "atol");
  const Tensor before = y0.contiguous(), after = y1.contiguous(), steps = h.contiguous();
  const ContiguousTerms terms(k, c);
  const int64_t rows = y0.size(0), dim = row_length(y0);
  const auto options = y0.options();
  Tensor norm = at::empty({rows}, options.dtype(accumulate_type(y0.scalar_type())));
  const Tensor partial = at::empty({rk_error_cuda_partials(rows, dim)}, options.dtype(at::kDouble));
  dispatch_floating(y0.scalar_type(), "rk_error_rows", [&]<class T>(T*) {
    check_error(
        rk_error_rows_cuda(data<T>(before), data<T>(after), terms.as<T>(), data<double>(steps),
                           data<double>(relative), data<double>(absolute), rows, dim,
                           mutable_data<acc_t<T>>(norm), mutable_data<double>(partial), stream),
        "rk_error_rows");
  });
  return norm;
}

Tensor rk_dense_rows_on_cuda(const Tensor& y, at::TensorList k, const Tensor& w) {
  check_samples(y);
  check_terms(k, k.size(), y);
  check_rows(w, y, "w", {y.size(0), int64_t(k.size())});
  void* const stream = current_cuda_stream(y.device(), "rk_dense_rows");
  const c10::DeviceGuard guard(y.device());
  const Tensor state = y.contiguous(), weights = w.contiguous();
  const ContiguousTerms terms(k);
  Tensor out = at::empty_like(state);
  dispatch_floating(y.scalar_type(), "rk_dense_rows", [&]<class T>(T*) {
    check_error(rk_dense_rows_cuda(data<T>(state), terms.as<T>(), data<double>(weights), y.size(0),
                                   row_length(y), mutable_data<T>(out), stream),
                "rk_dense_rows");
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastnode, CUDA, m) {
  m.impl("rk_stage_rows", rk_stage_rows_on_cuda);
  m.impl("rk_error_rows", rk_error_rows_on_cuda);
  m.impl("rk_dense_rows", rk_dense_rows_on_cuda);
}

}  // namespace fastnode

#endif
