// Schemas, CPU implementations and autograd of `rk_stage_rows`, `rk_error_rows` and
// `rk_dense_rows`. Derivatives are those for the states and stages; steps, tolerances and weights
// of the rows are constants (the Python wrappers differentiate the reference where they are not).
#include "kernels/rk/rk_rows.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/norm_gradients.h"
#include "ops/result_pool.h"
#include "ops/rows.h"
#include "ops/terms.h"

namespace fastnode {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <class F>
void for_rows(const Tensor& y, F&& f) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, row_length(y)));
  at::parallel_for(0, y.size(0), grain, f);
}

Tensor rk_stage_rows_cpu(const Tensor& y, at::TensorList k, at::ArrayRef<double> c,
                         const Tensor& h) {
  check_samples(y);
  check_terms(k, c.size(), y);
  check_rows(h, y, "h", y.sizes().slice(0, 1));
  const Tensor state = y.contiguous(), steps = h.contiguous();
  const ContiguousTerms terms(k, c);
  Tensor out = empty_result(state);
  dispatch_floating(y.scalar_type(), "rk_stage_rows", [&]<class T>(T*) {
    const Terms<T> typed = terms.as<T>();
    for_rows(y, [&](int64_t begin, int64_t end) {
      rk_stage_rows_range(data<T>(state), typed, data<double>(steps), begin, end, row_length(y),
                          mutable_data<T>(out));
    });
  });
  return out;
}

Tensor rk_error_rows_cpu(const Tensor& y0, const Tensor& y1, at::TensorList k,
                         at::ArrayRef<double> c, const Tensor& h, const Tensor& rtol,
                         const Tensor& atol) {
  check_samples(y0);
  check_like(y1, y0, "y1");
  check_terms(k, c.size(), y0);
  check_rows(h, y0, "h", y0.sizes().slice(0, 1));
  const Tensor relative = numbers_of_rows(rtol, y0, "rtol");
  const Tensor absolute = numbers_of_rows(atol, y0, "atol");
  const Tensor before = y0.contiguous(), after = y1.contiguous(), steps = h.contiguous();
  const ContiguousTerms terms(k, c);
  Tensor norm = at::empty({y0.size(0)}, y0.options().dtype(accumulate_type(y0.scalar_type())));
  dispatch_floating(y0.scalar_type(), "rk_error_rows", [&]<class T>(T*) {
    const Terms<T> typed = terms.as<T>();
    for_rows(y0, [&](int64_t begin, int64_t end) {
      rk_error_rows_range(data<T>(before), data<T>(after), typed, data<double>(steps),
                          data<double>(relative), data<double>(absolute), begin, end,
                          row_length(y0), mutable_data<acc_t<T>>(norm));
    });
  });
  return norm;
}

Tensor rk_dense_rows_cpu(const Tensor& y, at::TensorList k, const Tensor& w) {
  check_samples(y);
  check_terms(k, k.size(), y);
  check_rows(w, y, "w", {y.size(0), int64_t(k.size())});
  const Tensor state = y.contiguous(), weights = w.contiguous();
  const ContiguousTerms terms(k);
  Tensor out = empty_result(state);
  dispatch_floating(y.scalar_type(), "rk_dense_rows", [&]<class T>(T*) {
    const Terms<T> typed = terms.as<T>();
    for_rows(y, [&](int64_t begin, int64_t end) {
      rk_dense_rows_range(data<T>(state), typed, data<double>(weights), begin, end, row_length(y),
                          mutable_data<T>(out));
    });
  });
  return out;
}

template <class F>
auto find_op(const char* name, F*) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<F>();
}

struct RkStageRows : torch::autograd::Function<RkStageRows> {
  static Tensor forward(AutogradContext* ctx, const Tensor& y, at::TensorList k,
                        at::ArrayRef<double> c, const Tensor& h) {
    at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = find_op("fastnode::rk_stage_rows", rk_stage_rows_cpu);
    ctx->set_materialize_grads(false);
    ctx->saved_data["c"] = c.vec();
    ctx->save_for_backward({h});
    return op.call(y, k, c, h);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    const std::vector<double> c = ctx->saved_data["c"].toDoubleVector();
    variable_list grads(c.size() + 3);
    const Tensor& g = upstream[0];
    if (!g.defined()) return grads;
    if (ctx->needs_input_grad(0)) grads[0] = g;
    const auto wide = accumulate_type(g.scalar_type());
    const Tensor steps = column(ctx->get_saved_variables()[0].to(wide), g.dim());
    const Tensor scaled = g.to(wide) * steps;
    for (size_t j = 0; j < c.size(); ++j) {
      if (ctx->needs_input_grad(1 + j)) grads[1 + j] = (scaled * c[j]).to(g.scalar_type());
    }
    return grads;
  }
};

struct RkErrorRows : torch::autograd::Function<RkErrorRows> {
  static Tensor forward(AutogradContext* ctx, const Tensor& y0, const Tensor& y1, at::TensorList k,
                        at::ArrayRef<double> c, const Tensor& h, const Tensor& rtol,
                        const Tensor& atol) {
    at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = find_op("fastnode::rk_error_rows", rk_error_rows_cpu);
    const Tensor norm = op.call(y0, y1, k, c, h, rtol, atol);
    ctx->set_materialize_grads(false);
    ctx->saved_data["c"] = c.vec();
    variable_list saved = {norm, y0, y1, h, rtol, atol};
    saved.insert(saved.end(), k.begin(), k.end());
    ctx->save_for_backward(std::move(saved));
    return norm;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    const std::vector<double> c = ctx->saved_data["c"].toDoubleVector();
    variable_list grads(c.size() + 6);
    if (!upstream[0].defined()) return grads;
    const variable_list saved = ctx->get_saved_variables();
    const auto wide = saved[0].scalar_type(), narrow = saved[1].scalar_type();
    const Tensor y0 = saved[1].to(wide), y1 = saved[2].to(wide);
    const auto of_rows = [&](const Tensor& x) { return column(x.to(wide), y0.dim()); };
    const Tensor steps = of_rows(saved[3]), rtol = of_rows(saved[4]), atol = of_rows(saved[5]);
    Tensor error = at::zeros_like(y0);
    for (size_t j = 0; j < c.size(); ++j) error = error + saved[6 + j].to(wide) * c[j];
    const bool for_states = ctx->needs_input_grad(0) || ctx->needs_input_grad(1);
    const NormGradients made =
        norm_gradients(saved[0], upstream[0], y0, y1, error * steps, rtol, atol, true, for_states);
    if (ctx->needs_input_grad(0)) grads[0] = made.y0.to(narrow);
    if (ctx->needs_input_grad(1)) grads[1] = made.y1.to(narrow);
    const Tensor scaled = made.error * steps;
    for (size_t j = 0; j < c.size(); ++j) {
      if (ctx->needs_input_grad(2 + j)) grads[2 + j] = (scaled * c[j]).to(narrow);
    }
    return grads;
  }
};

struct RkDenseRows : torch::autograd::Function<RkDenseRows> {
  static Tensor forward(AutogradContext* ctx, const Tensor& y, at::TensorList k, const Tensor& w) {
    at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = find_op("fastnode::rk_dense_rows", rk_dense_rows_cpu);
    ctx->set_materialize_grads(false);
    ctx->saved_data["stages"] = int64_t(k.size());
    ctx->save_for_backward({w});
    return op.call(y, k, w);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    const size_t n = ctx->saved_data["stages"].toInt();
    variable_list grads(n + 2);
    const Tensor& g = upstream[0];
    if (!g.defined()) return grads;
    if (ctx->needs_input_grad(0)) grads[0] = g;
    const auto wide = accumulate_type(g.scalar_type());
    const Tensor weights = ctx->get_saved_variables()[0].to(wide), wide_g = g.to(wide);
    for (size_t j = 0; j < n; ++j) {
      if (!ctx->needs_input_grad(1 + j)) continue;
      const Tensor weight = column(weights.select(1, j), g.dim());
      grads[1 + j] = (wide_g * weight).to(g.scalar_type());
    }
    return grads;
  }
};

Tensor rk_stage_rows_autograd(const Tensor& y, at::TensorList k, at::ArrayRef<double> c,
                              const Tensor& h) {
  return RkStageRows::apply(y, k, c, h);
}

Tensor rk_error_rows_autograd(const Tensor& y0, const Tensor& y1, at::TensorList k,
                              at::ArrayRef<double> c, const Tensor& h, const Tensor& rtol,
                              const Tensor& atol) {
  return RkErrorRows::apply(y0, y1, k, c, h, rtol, atol);
}

Tensor rk_dense_rows_autograd(const Tensor& y, at::TensorList k, const Tensor& w) {
  return RkDenseRows::apply(y, k, w);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastnode, m) {
  m.def("rk_stage_rows(Tensor y, Tensor[] k, float[] c, Tensor h) -> Tensor");
  m.def(
      "rk_error_rows(Tensor y0, Tensor y1, Tensor[] k, float[] c, Tensor h, Tensor rtol,"
      " Tensor atol) -> Tensor");
  m.def("rk_dense_rows(Tensor y, Tensor[] k, Tensor w) -> Tensor");
}

TORCH_LIBRARY_IMPL(fastnode, CPU, m) {
  m.impl("rk_stage_rows", rk_stage_rows_cpu);
  m.impl("rk_error_rows", rk_error_rows_cpu);
  m.impl("rk_dense_rows", rk_dense_rows_cpu);
}

TORCH_LIBRARY_IMPL(fastnode, Autograd, m) {
  m.impl("rk_stage_rows", rk_stage_rows_autograd);
  m.impl("rk_error_rows", rk_error_rows_autograd);
  m.impl("rk_dense_rows", rk_dense_rows_autograd);
}

}  // namespace fastnode
