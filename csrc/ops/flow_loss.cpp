// Schema, checks, CPU implementation and autograd of `flow_loss`.
//
// The forward pass also makes grad, a multiple of the residual, which backward only has to hand on:
// to v, and to the path's stand-in for -u (ops/interpolant.cpp).
#include "kernels/flow/flow_loss.h"

#include <ATen/TensorOperators.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/library.h>

#include <limits>

#include "ops/common.h"
#include "ops/result_pool.h"

namespace fastnode {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// d loss / d v = loss_derivative * residual.
double loss_derivative(int64_t numel, bool mean) { return mean ? 2.0 / double(numel) : 2.0; }

// What grad holds, as a multiple of the residual. In float16 the gradient of a mean would push it
// below the smallest number before a GradScaler could lift it: there grad is the residual itself.
double grad_scale(at::ScalarType dtype, int64_t numel, bool mean) {
  return dtype == at::kHalf ? 1.0 : loss_derivative(numel, mean);
}

void check_coef(const Tensor& coef, const Tensor& v, at::ScalarType wide) {
  TORCH_CHECK_TYPE(coef.scalar_type() == wide, "coef must be ", wide, ", got ", coef.scalar_type());
  TORCH_CHECK_VALUE(coef.dim() == 2 && coef.size(0) == 4 && coef.size(1) == v.size(0),
                    "coef must have shape [4, B], got ", coef.sizes());
}

// Without z1 and coef the target is z0 itself.
std::tuple<Tensor, Tensor> flow_loss_cpu(const Tensor& v, const Tensor& /*stand_in*/,
                                         const Tensor& z0, const std::optional<Tensor>& end,
                                         const std::optional<Tensor>& rows, bool mean,
                                         bool with_grad) {
  TORCH_CHECK_VALUE(end.has_value() == rows.has_value(), "z1 and coef must be passed together");
  const bool stored = !end.has_value();
  const Tensor& z1 = stored ? z0 : *end;
  TORCH_CHECK_VALUE(v.dim() > 0 && v.sizes() == z0.sizes() && v.sizes() == z1.sizes(),
                    "v, z0 and z1 must have one shape [B, ...], got ", v.sizes(), ", ", z0.sizes(),
                    " and ", z1.sizes());
  const auto dtype = v.scalar_type(), wide = accumulate_type(dtype);
  TORCH_CHECK_TYPE(dtype == z0.scalar_type() && dtype == z1.scalar_type(),
                   "v, z0 and z1 must have one dtype, got ", dtype, ", ", z0.scalar_type(), " and ",
                   z1.scalar_type());
  const Tensor vc = v.contiguous(), x = z0.contiguous();
  Tensor y, c;
  if (!stored) {
    check_coef(*rows, v, wide);
    y = z1.contiguous();
    c = rows->contiguous();
  }
  const int64_t total = v.numel(), batch = stored ? 1 : v.size(0);
  Tensor grad = with_grad ? empty_result(vc) : at::empty({0}, v.options());
  // One partial sum for each piece of a fixed size, summed in order: the same result for any number
  // of threads.
  std::vector<double> partial((total + kGrain - 1) / kGrain);
  dispatch_floating(dtype, "flow_loss", [&]<class T>(T*) {
    using A = acc_t<T>;
    const A* da = stored ? nullptr : data<A>(c) + 2 * batch;
    const A* db = stored ? nullptr : data<A>(c) + 3 * batch;
    const bool stream = with_grad && 4 * total * int64_t(sizeof(T)) >= kStreamBytes;
    at::parallel_for(0, int64_t(partial.size()), 1, [&](int64_t first, int64_t last) {
      for (int64_t piece = first; piece < last; ++piece) {
        partial[piece] = flow_loss_range(data<T>(vc), data<T>(x), data<T>(y), da, db, total / batch,
                                         piece * kGrain, std::min(total, (piece + 1) * kGrain),
                                         A(grad_scale(dtype, total, mean)), stream,
                                         with_grad ? mutable_data<T>(grad) : nullptr);
      }
    });
  });
  double sum = 0;
  for (double part : partial) sum += part;
  if (mean) sum = total > 0 ? sum / double(total) : std::numeric_limits<double>::quiet_NaN();
  Tensor loss = at::detail::empty_cpu({}, wide);
  if (wide == at::kDouble) {
    *mutable_data<double>(loss) = sum;
  } else {
    *mutable_data<float>(loss) = float(sum);
  }
  return {loss, grad};
}

void scale_cpu(Tensor& x, const Tensor& factor) { x.mul_(factor); }

std::tuple<Tensor, Tensor> call_flow_loss(const Tensor& v, const Tensor& stand_in, const Tensor& z0,
                                          const std::optional<Tensor>& z1,
                                          const std::optional<Tensor>& coef, bool mean,
                                          bool with_grad) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastnode::flow_loss", "")
                             .typed<decltype(flow_loss_cpu)>();
  return op.call(v, stand_in, z0, z1, coef, mean, with_grad);
}

void call_scale(Tensor& x, const Tensor& factor) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastnode::scale_", "")
                             .typed<decltype(scale_cpu)>();
  op.call(x, factor);
}

// The end points and coefficients, hidden from autograd: their gradients travel through stand_in.
struct Constants {
  const Tensor& z0;
  const std::optional<Tensor>&z1, &coef;
};

struct FlowLoss : torch::autograd::Function<FlowLoss> {
  static variable_list forward(AutogradContext* ctx, const Tensor& v, const Tensor& stand_in,
                               const Constants& path, bool mean, bool with_grad) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [loss, grad] = call_flow_loss(v, stand_in, path.z0, path.z1, path.coef, mean, with_grad);
    ctx->set_materialize_grads(false);
    ctx->saved_data["mean"] = mean;
    // grad is a result as well as a saved tensor: its own derivative is a constant times the
    // identity, so every higher derivative follows from this one node.
    ctx->save_for_backward({grad});
    return {loss, grad};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    const Tensor saved = ctx->get_saved_variables()[0];
    const bool mean = ctx->saved_data["mean"].toBool();
    const Tensor &g = upstream[0], &g_grad = upstream[1];
    const bool plain = !at::GradMode::is_enabled() && !g_grad.defined() &&
                       !at::isTensorSubclassLike(saved) && !at::isTensorSubclassLike(g);
    Tensor dv;
    if (g.defined()) {
      Tensor factor = g;
      if (saved.scalar_type() == at::kHalf) {
        factor = g * loss_derivative(saved.sym_numel().guard_int(__FILE__, __LINE__), mean);
      }
      // Mostly the factor is 1 and grad is the answer. It may be handed on (or changed in place)
      // only when it will not be used again.
      if (plain && !torch::autograd::get_current_graph_task_keep_graph()) {
        dv = saved.detach();
        bool one = false;
        if (factor.is_cpu()) {
          dispatch_real(factor.scalar_type(), [&]<class A>(A*) { one = *data<A>(factor) == 1; });
        }
        if (!one) call_scale(dv, factor);
      } else {
        dv = saved * factor;
      }
    }
    if (g_grad.defined()) {
      const int64_t numel = saved.sym_numel().guard_int(__FILE__, __LINE__);
      const Tensor part = g_grad * grad_scale(saved.scalar_type(), numel, mean);
      dv = dv.defined() ? dv + part : part;
    }
    const bool need_v = ctx->needs_input_grad(0), need_target = ctx->needs_input_grad(1);
    return {need_v ? dv : Tensor(),
            need_target ? dv : Tensor(),
            Tensor(),
            Tensor(),
            Tensor(),
            Tensor(),
            Tensor()};
  }
};

std::tuple<Tensor, Tensor> flow_loss_autograd(const Tensor& v, const Tensor& stand_in,
                                              const Tensor& z0, const std::optional<Tensor>& z1,
                                              const std::optional<Tensor>& coef, bool mean,
                                              bool with_grad) {
  auto out = FlowLoss::apply(v, stand_in, Constants{z0, z1, coef}, mean, with_grad);
  return {out[0], out[1]};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastnode, m) {
  m.def(
      "flow_loss(Tensor v, Tensor stand_in, Tensor z0, Tensor? z1, Tensor? coef, bool mean,"
      " bool with_grad) -> (Tensor loss, Tensor grad)");
  m.def("scale_(Tensor(a!) x, Tensor factor) -> ()");
}

TORCH_LIBRARY_IMPL(fastnode, CPU, m) {
  m.impl("flow_loss", flow_loss_cpu);
  m.impl("scale_", scale_cpu);
}

TORCH_LIBRARY_IMPL(fastnode, Autograd, m) { m.impl("flow_loss", flow_loss_autograd); }

}  // namespace fastnode
