// Schema, checks, CPU implementation and autograd of `interpolant`, `path_coefficients` and
// `sampled_coefficients`.
//
// The op's second result is u itself, or (store_target = false) a stand-in for -u: a tensor of u's
// shape without storage of its own. Whoever uses the target velocity hands its gradient to the
// stand-in, and autograd brings it here together with that of z_t: one backward pass reads the two
// and writes dz0 and dz1. The stand-in is for -u, and not for u, because the loss's gradient for v
// is also its gradient for -u: one tensor then serves both.
#include "kernels/flow/interpolant.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cstring>

#include "ops/common.h"
#include "ops/result_pool.h"

namespace fastnode {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void check_coef(const Tensor& coef, const Tensor& z) {
  TORCH_CHECK_VALUE(
      z.dim() > 0 && coef.dim() == 2 && coef.size(0) == 4 && coef.size(1) == z.size(0),
      "coef must have shape [4, B] for end points [B, ...], got ", coef.sizes(), " and ",
      z.sizes());
  TORCH_CHECK_TYPE(coef.scalar_type() == accumulate_type(z.scalar_type()), "coef must be ",
                   accumulate_type(z.scalar_type()), " for ", z.scalar_type(), ", got ",
                   coef.scalar_type());
}

void check_alike(const Tensor& x, const Tensor& y, const char* names) {
  TORCH_CHECK_VALUE(x.sizes() == y.sizes(), names, " must have one shape, got ", x.sizes(), " and ",
                    y.sizes());
  TORCH_CHECK_TYPE(x.scalar_type() == y.scalar_type(), names, " must have one dtype, got ",
                   x.scalar_type(), " and ", y.scalar_type());
}

// p = c0 x + sign c1 y and q = c2 x + sign c3 y; y and q may be undefined. `rows` says which row of
// coef each of c0..c3 is.
void mix(const Tensor& x, const Tensor& y, const Tensor& coef, const int (&rows)[4], double sign,
         const Tensor& p, const Tensor& q) {
  const int64_t total = x.numel(), batch = coef.size(1);
  if (total == 0) return;
  dispatch_floating(x.scalar_type(), "interpolant", [&]<class T>(T*) {
    using A = acc_t<T>;
    const A* c = data<A>(coef);
    const MixRows<A> mix_rows{
        {c + rows[0] * batch, c + rows[1] * batch, c + rows[2] * batch, c + rows[3] * batch},
        A(sign)};
    const int64_t tensors = 2 + y.defined() + q.defined();
    const bool stream = tensors * total * int64_t(sizeof(T)) >= kStreamBytes;
    at::parallel_for(0, total, kGrain, [&](int64_t begin, int64_t end) {
      mix_range(data<T>(x), data<T>(y), mix_rows, total / batch, begin, end, stream,
                mutable_data<T>(p), mutable_data<T>(q));
    });
  });
}

// A zero seen as a tensor of z's shape: 1 us against 3 us for zeros().expand().
Tensor stand_in(const Tensor& z) {
  const std::vector<int64_t> strides(z.dim(), 0);
  Tensor zero = at::detail::empty_strided_cpu(z.sizes(), strides, z.scalar_type());
  if (z.numel() > 0) std::memset(zero.mutable_data_ptr(), 0, zero.element_size());
  return zero;
}

std::tuple<Tensor, Tensor> interpolant_cpu(const Tensor& z0, const Tensor& z1, const Tensor& coef,
                                           bool store_target) {
  check_coef(coef, z0);
  check_alike(z0, z1, "z0 and z1");
  const Tensor x = z0.contiguous(), y = z1.contiguous();
  Tensor zt = empty_result(x), target;
  if (store_target) target = empty_result(x);
  mix(x, y, coef.contiguous(), {0, 1, 2, 3}, 1.0, zt, target);
  if (!store_target) target = stand_in(z0);
  return {zt, target};
}

std::tuple<Tensor, Tensor> interpolant_backward_cpu(const std::optional<Tensor>& grad_zt,
                                                    const std::optional<Tensor>& grad_target,
                                                    const Tensor& coef, double sign, bool need_z0,
                                                    bool need_z1) {
  const bool has_zt = grad_zt.has_value() && grad_zt->defined();
  const bool has_target = grad_target.has_value() && grad_target->defined();
  TORCH_CHECK_VALUE(has_zt || has_target, "interpolant_backward needs at least one gradient");
  const Tensor x = (has_zt ? *grad_zt : *grad_target).contiguous();
  const Tensor y = has_zt && has_target ? grad_target->contiguous() : Tensor();
  check_coef(coef, x);
  if (y.defined()) check_alike(x, y, "grad_zt and grad_target");
  const Tensor c = coef.contiguous();
  // Rows of coef are a, b, a', b'. Where only the target has a gradient, it takes x's place.
  auto result = [&](bool need) { return need ? empty_result(x) : at::empty({0}, x.options()); };
  Tensor dz0 = result(need_z0), dz1 = result(need_z1);
  const int z0_x = has_zt ? 0 : 2, z1_x = has_zt ? 1 : 3;
  Tensor input = x;
  if (!has_zt && sign != 1.0) input = x.mul(sign);
  if (need_z0) {
    mix(input, y, c, {z0_x, 2, z1_x, 3}, sign, dz0, need_z1 ? dz1 : Tensor());
  } else if (need_z1) {
    mix(input, y, c, {z1_x, 3, z1_x, 3}, sign, dz1, Tensor());
  }
  return {dz0, dz1};
}

Tensor path_coefficients_cpu(const Tensor& t, int64_t kind, bool check) {
  TORCH_CHECK_VALUE(t.dim() == 1, "t must have shape [B], got ", t.sizes());
  TORCH_CHECK_VALUE(kind >= 0 && kind <= 2, "kind must be 0, 1 or 2, got ", kind);
  const auto dtype = t.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble,
                   "t must be float32 or float64, got ", dtype);
  const Tensor times = t.contiguous();
  Tensor out = at::empty({4, t.size(0)}, t.options());
  const bool inside =
      dtype == at::kFloat
          ? path_coefficients(data<float>(times), t.size(0), kind, mutable_data<float>(out))
          : path_coefficients(data<double>(times), t.size(0), kind, mutable_data<double>(out));
  TORCH_CHECK_VALUE(inside || !check, "t must lie in [0, 1], got values from ",
                    t.min().item<double>(), " to ", t.max().item<double>(),
                    "; extrapolate=True allows any t");
  return out;
}

// The times of sample_time from its draws in [0, 1), a row for t and one for which t are 0, and the
// coefficients there.
std::tuple<Tensor, Tensor> sampled_coefficients_cpu(const Tensor& draws, int64_t kind,
                                                    double zero_probability) {
  TORCH_CHECK_VALUE(draws.dim() == 2 && draws.size(0) == 2, "draws must have shape [2, B], got ",
                    draws.sizes());
  const auto dtype = draws.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble,
                   "draws must be float32 or float64, got ", dtype);
  const int64_t batch = draws.size(1);
  const Tensor uniform = draws.contiguous();
  Tensor t = at::empty({batch}, draws.options());
  dispatch_real(dtype, [&]<class A>(A*) {
    const A *u = data<A>(uniform), zero_below = A(zero_probability);
    for (int64_t i = 0; i < batch; ++i) {
      mutable_data<A>(t)[i] = u[batch + i] < zero_below ? A(0) : u[i];
    }
  });
  return {t, path_coefficients_cpu(t, kind, false)};
}

std::tuple<Tensor, Tensor> call_interpolant(const Tensor& z0, const Tensor& z1, const Tensor& coef,
                                            bool store_target) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastnode::interpolant", "")
                             .typed<decltype(interpolant_cpu)>();
  return op.call(z0, z1, coef, store_target);
}

std::tuple<Tensor, Tensor> call_backward(const Tensor& grad_zt, const Tensor& grad_target,
                                         const Tensor& coef, double sign, bool need_z0,
                                         bool need_z1) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastnode::interpolant_backward", "")
                             .typed<decltype(interpolant_backward_cpu)>();
  auto optional = [](const Tensor& x) { return x.defined() ? std::optional(x) : std::nullopt; };
  return op.call(optional(grad_zt), optional(grad_target), coef, sign, need_z0, need_z1);
}

// One row of coef against a tensor [B, ...].
Tensor row(const Tensor& coef, int64_t index, const Tensor& like) {
  std::vector<c10::SymInt> shape(like.dim(), 1);
  shape[0] = -1;
  return coef.select(0, index).view_symint(shape);
}

struct Interpolant : torch::autograd::Function<Interpolant> {
  static variable_list forward(AutogradContext* ctx, const Tensor& z0, const Tensor& z1,
                               const Tensor& coef, bool store_target) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [zt, target] = call_interpolant(z0, z1, coef, store_target);
    ctx->set_materialize_grads(false);
    ctx->saved_data["sign"] = store_target ? 1.0 : -1.0;
    // The end points are needed only for the gradient of the coefficients.
    if (coef.requires_grad()) {
      ctx->save_for_backward({coef, z0, z1});
    } else {
      ctx->save_for_backward({coef});
    }
    return {zt, target};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const Tensor& coef = saved[0];
    const Tensor &g = grads[0], &h = grads[1];
    const double sign = ctx->saved_data["sign"].toDouble();
    if (!g.defined() && !h.defined()) return {Tensor(), Tensor(), Tensor(), Tensor()};
    Tensor dz0, dz1, dcoef;
    const bool need_z0 = ctx->needs_input_grad(0), need_z1 = ctx->needs_input_grad(1);
    if (at::GradMode::is_enabled()) {
      // Someone differentiates the backward pass: plain differentiable ops.
      auto combine = [&](int64_t i, int64_t j) {
        Tensor sum;
        if (g.defined()) sum = g * row(coef, i, g);
        if (h.defined()) {
          const Tensor part = h * row(coef, j, h) * sign;
          sum = sum.defined() ? sum + part : part;
        }
        return sum.to((g.defined() ? g : h).scalar_type());
      };
      if (need_z0) dz0 = combine(0, 2);
      if (need_z1) dz1 = combine(1, 3);
    } else if (need_z0 || need_z1) {
      std::tie(dz0, dz1) = call_backward(g, h, coef, sign, need_z0, need_z1);
    }
    if (ctx->needs_input_grad(2)) {
      const Tensor &z0 = saved[1], &z1 = saved[2];
      auto inner = [&](const Tensor& grad, const Tensor& z, double scale) {
        if (!grad.defined()) return at::zeros_symint(coef.sym_sizes()[1], coef.options());
        const auto wide = coef.scalar_type();
        const Tensor product = grad.to(wide) * z.to(wide);
        return (product.dim() == 1 ? product : product.flatten(1).sum(1)) * scale;
      };
      dcoef = at::stack({inner(g, z0, 1), inner(g, z1, 1), inner(h, z0, sign), inner(h, z1, sign)});
    }
    return {need_z0 ? dz0 : Tensor(), need_z1 ? dz1 : Tensor(), dcoef, Tensor()};
  }
};

std::tuple<Tensor, Tensor> interpolant_autograd(const Tensor& z0, const Tensor& z1,
                                                const Tensor& coef, bool store_target) {
  auto out = Interpolant::apply(z0, z1, coef, store_target);
  return {out[0], out[1]};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastnode, m) {
  m.def("path_coefficients(Tensor t, int kind, bool check) -> Tensor");
  m.def(
      "sampled_coefficients(Tensor draws, int kind, float zero_probability)"
      " -> (Tensor t, Tensor coef)");
  m.def(
      "interpolant(Tensor z0, Tensor z1, Tensor coef, bool store_target)"
      " -> (Tensor zt, Tensor target)");
  m.def(
      "interpolant_backward(Tensor? grad_zt, Tensor? grad_target, Tensor coef, float sign,"
      " bool need_z0, bool need_z1) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(fastnode, CPU, m) {
  m.impl("path_coefficients", path_coefficients_cpu);
  m.impl("sampled_coefficients", sampled_coefficients_cpu);
  m.impl("interpolant", interpolant_cpu);
  m.impl("interpolant_backward", interpolant_backward_cpu);
}

TORCH_LIBRARY_IMPL(fastnode, Autograd, m) { m.impl("interpolant", interpolant_autograd); }

}  // namespace fastnode
