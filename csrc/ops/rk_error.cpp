// Schema, checks, CPU and CUDA implementations and autograd of `rk_error`.
#include "kernels/rk/rk_error.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>

#include "ops/cuda_stream.h"
#include "ops/error_norm.h"
#include "ops/norm_gradients.h"
#include "ops/result_pool.h"
#include "ops/terms.h"

namespace fastnode {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void check_inputs(const Tensor& y0, const Tensor& y1, at::TensorList k, at::ArrayRef<double> c,
                  bool per_sample) {
  check_like(y1, y0, "y1");
  check_terms(k, c.size(), y0);
  TORCH_CHECK_VALUE(!per_sample || y0.dim() > 0,
                    "per_sample needs a state of shape [B, ...], got a scalar");
}

// The elements that share a norm: `count` rows of `dim`.
struct Rows {
  int64_t count, dim;
};

Rows rows_of(const Tensor& y0, bool per_sample) {
  const int64_t count = per_sample ? y0.size(0) : 1;
  return {count, count == 0 ? 0 : y0.numel() / count};
}

Tensor empty_norm(const Tensor& y0, bool per_sample) {
  const auto options = y0.options().dtype(accumulate_type(y0.scalar_type()));
  return per_sample ? at::empty({y0.size(0)}, options) : at::empty({}, options);
}

Tensor rk_error_cpu(const Tensor& y0, const Tensor& y1, at::TensorList k, at::ArrayRef<double> c,
                    double rtol, double atol, bool per_sample) {
  check_inputs(y0, y1, k, c, per_sample);
  const Tensor before = y0.contiguous(), after = y1.contiguous();
  const ContiguousTerms terms(k, c);
  const Rows rows = rows_of(y0, per_sample);
  Tensor norm = empty_norm(y0, per_sample);
  dispatch_floating(y0.scalar_type(), "rk_error", [&]<class T>(T*) {
    const Terms<T> typed = terms.as<T>();
    const int64_t rows_at_once = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, rows.dim));
    // A lone row is divided among the threads instead.
    at::parallel_for(0, rows.count, rows_at_once, [&](int64_t first, int64_t last) {
      for (int64_t row = first; row < last; ++row) {
        mutable_data<acc_t<T>>(norm)[row] =
            acc_t<T>(error_norm(data<T>(before), data<T>(after), typed, rtol, atol, row * rows.dim,
                                (row + 1) * rows.dim));
      }
    });
  });
  return norm;
}

#ifdef FASTNODE_WITH_CUDA
Tensor rk_error_on_cuda(const Tensor& y0, const Tensor& y1, at::TensorList k,
                        at::ArrayRef<double> c, double rtol, double atol, bool per_sample) {
  check_inputs(y0, y1, k, c, per_sample);
  void* const stream = current_cuda_stream(y0.device(), "rk_error");
  const c10::DeviceGuard guard(y0.device());
  const Tensor before = y0.contiguous(), after = y1.contiguous();
  const ContiguousTerms terms(k, c);
  const Rows rows = rows_of(y0, per_sample);
  Tensor norm = empty_norm(y0, per_sample);
  const Tensor partial =
      at::empty({rk_error_cuda_partials(rows.count, rows.dim)}, y0.options().dtype(at::kDouble));
  dispatch_floating(y0.scalar_type(), "rk_error", [&]<class T>(T*) {
    using A = acc_t<T>;
    const int error =
        rk_error_cuda(data<T>(before), data<T>(after), terms.as<T>(), A(rtol), A(atol), rows.count,
                      rows.dim, mutable_data<A>(norm), mutable_data<double>(partial), stream);
    TORCH_CHECK(error == 0, "rk_error: CUDA error ", error);
  });
  return norm;
}
#endif

Tensor call_rk_error(const Tensor& y0, const Tensor& y1, at::TensorList k, at::ArrayRef<double> c,
                     double rtol, double atol, bool per_sample) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastnode::rk_error", "")
                             .typed<decltype(rk_error_cpu)>();
  return op.call(y0, y1, k, c, rtol, atol, per_sample);
}

// All gradients in one pass over the state; none for norms of samples and narrow types.
bool gradients_at_once(const variable_list& saved, const Tensor& upstream,
                       const std::vector<double>& c, double rtol, double atol, bool for_states,
                       variable_list& grads) {
  const Tensor &norm = saved[0], &y0 = saved[1];
  if (norm.dim() != 0 || norm.scalar_type() != y0.scalar_type()) return false;
  if (!may_read(saved) || !may_read({upstream})) return false;
  const Tensor before = y0.contiguous(), after = saved[2].contiguous();
  const ContiguousTerms terms(at::TensorList(saved).slice(3), c);
  for (size_t j = 0; j < c.size(); ++j) grads[2 + j] = empty_result(before);
  for (int i = 0; for_states && i < 2; ++i) grads[i] = empty_result(before);
  const double size = norm.item<double>();
  const double factor = size == 0 ? 0 : upstream.item<double>() / size / double(y0.numel());
  dispatch_real(y0.scalar_type(), [&]<class T>(T*) {
    ErrorGradients<T> to{mutable_data<T>(grads[0]), mutable_data<T>(grads[1]), {}};
    for (size_t j = 0; j < c.size(); ++j) to.k[j] = mutable_data<T>(grads[2 + j]);
    const Terms<T> typed = terms.as<T>();
    at::parallel_for(0, y0.numel(), kGrain, [&](int64_t begin, int64_t end) {
      rk_error_back_range(data<T>(before), data<T>(after), typed, T(rtol), T(atol), T(factor),
                          begin, end, to);
    });
  });
  return true;
}

struct RkError : torch::autograd::Function<RkError> {
  static Tensor forward(AutogradContext* ctx, const Tensor& y0, const Tensor& y1, at::TensorList k,
                        at::ArrayRef<double> c, double rtol, double atol, bool per_sample) {
    at::AutoDispatchBelowADInplaceOrView below;
    Tensor norm = call_rk_error(y0, y1, k, c, rtol, atol, per_sample);
    ctx->set_materialize_grads(false);
    ctx->saved_data["c"] = c.vec();
    ctx->saved_data["rtol"] = rtol;
    ctx->saved_data["atol"] = atol;
    ctx->saved_data["per_sample"] = per_sample;
    variable_list saved = {norm, y0, y1};
    saved.insert(saved.end(), k.begin(), k.end());
    ctx->save_for_backward(std::move(saved));
    return norm;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    const std::vector<double> c = ctx->saved_data["c"].toDoubleVector();
    variable_list grads(c.size() + 6);
    if (!upstream[0].defined()) return grads;
    const variable_list saved = ctx->get_saved_variables();
    const double rtol = ctx->saved_data["rtol"].toDouble();
    const double atol = ctx->saved_data["atol"].toDouble();
    const bool per_sample = ctx->saved_data["per_sample"].toBool();
    const bool for_states = rtol != 0 && (ctx->needs_input_grad(0) || ctx->needs_input_grad(1));
    if (gradients_at_once(saved, upstream[0], c, rtol, atol, for_states, grads)) return grads;
    const auto wide = saved[0].scalar_type();
    const Tensor y0 = saved[1].to(wide), y1 = saved[2].to(wide);

    Tensor error = at::zeros_like(y0);
    for (size_t j = 0; j < c.size(); ++j) error = error + saved[3 + j].to(wide) * c[j];
    const NormGradients made =
        norm_gradients(saved[0], upstream[0], y0, y1, error, rtol, atol, per_sample, for_states);
    const auto narrow = saved[1].scalar_type();
    if (for_states && ctx->needs_input_grad(0)) grads[0] = made.y0.to(narrow);
    if (for_states && ctx->needs_input_grad(1)) grads[1] = made.y1.to(narrow);
    for (size_t j = 0; j < c.size(); ++j) {
      if (ctx->needs_input_grad(2 + j)) {
        grads[2 + j] = (made.error * c[j]).to(narrow);
      }
    }
    return grads;
  }
};

Tensor rk_error_autograd(const Tensor& y0, const Tensor& y1, at::TensorList k,
                         at::ArrayRef<double> c, double rtol, double atol, bool per_sample) {
  return RkError::apply(y0, y1, k, c, rtol, atol, per_sample);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastnode, m) {
  m.def(
      "rk_error(Tensor y0, Tensor y1, Tensor[] k, float[] c, float rtol, float atol,"
      " bool per_sample) -> Tensor");
}

TORCH_LIBRARY_IMPL(fastnode, CPU, m) { m.impl("rk_error", rk_error_cpu); }

#ifdef FASTNODE_WITH_CUDA
TORCH_LIBRARY_IMPL(fastnode, CUDA, m) { m.impl("rk_error", rk_error_on_cuda); }
#endif

TORCH_LIBRARY_IMPL(fastnode, Autograd, m) { m.impl("rk_error", rk_error_autograd); }

}  // namespace fastnode
