// Schema, checks, CPU and CUDA implementations and autograd of `rk_dense`.
#include "kernels/rk/rk_dense.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/sum.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/cuda_stream.h"
#include "ops/result_pool.h"
#include "ops/terms.h"

namespace fastnode {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void check_inputs(const Tensor& y, at::TensorList k, const Tensor& c) {
  TORCH_CHECK_TYPE(c.scalar_type() == at::kDouble, "c must be float64, got ", c.scalar_type());
  TORCH_CHECK_VALUE(c.dim() == 2 && c.is_cpu(), "c must be a matrix [m, n] on the CPU, got shape ",
                    c.sizes(), " on ", c.device());
  check_terms(k, c.size(1), y);
}

std::vector<int64_t> result_shape(const Tensor& y, const Tensor& c) {
  std::vector<int64_t> shape = {c.size(0)};
  shape.insert(shape.end(), y.sizes().begin(), y.sizes().end());
  return shape;
}

template <class A>
std::vector<A> weights(const Tensor& c) {
  const Tensor rows = c.contiguous();
  return {data<double>(rows), data<double>(rows) + rows.numel()};
}

Tensor rk_dense_cpu(const Tensor& y, at::TensorList k, const Tensor& c) {
  check_inputs(y, k, c);
  const Tensor state = y.contiguous();
  const ContiguousTerms terms(k);
  Tensor out = empty_result(state, result_shape(y, c));
  const int64_t m = c.size(0), numel = y.numel();
  dispatch_floating(y.scalar_type(), "rk_dense", [&]<class T>(T*) {
    const Terms<T> typed = terms.as<T>();
    const auto numbers = weights<acc_t<T>>(c);
    const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, m));
    at::parallel_for(0, numel, grain, [&](int64_t begin, int64_t end) {
      rk_dense_range(data<T>(state), typed, numbers.data(), m, numel, begin, end,
                     mutable_data<T>(out));
    });
  });
  return out;
}

#ifdef FASTNODE_WITH_CUDA
Tensor rk_dense_on_cuda(const Tensor& y, at::TensorList k, const Tensor& c) {
  check_inputs(y, k, c);
  void* const stream = current_cuda_stream(y.device(), "rk_dense");
  const c10::DeviceGuard guard(y.device());
  const Tensor state = y.contiguous();
  const ContiguousTerms terms(k);
  Tensor out = at::empty(result_shape(y, c), y.options());
  dispatch_floating(y.scalar_type(), "rk_dense", [&]<class T>(T*) {
    const int error = rk_dense_cuda(data<T>(state), terms.as<T>(), weights<acc_t<T>>(c).data(),
                                    c.size(0), y.numel(), mutable_data<T>(out), stream);
    TORCH_CHECK(error == 0, "rk_dense: CUDA error ", error);
  });
  return out;
}
#endif

Tensor call_rk_dense(const Tensor& y, at::TensorList k, const Tensor& c) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastnode::rk_dense", "")
                             .typed<decltype(rk_dense_cpu)>();
  return op.call(y, k, c);
}

struct RkDense : torch::autograd::Function<RkDense> {
  static Tensor forward(AutogradContext* ctx, const Tensor& y, at::TensorList k, const Tensor& c) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->set_materialize_grads(false);
    // The stages matter to the derivative for c alone.
    variable_list saved = {c};
    if (c.requires_grad()) saved.insert(saved.end(), k.begin(), k.end());
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["stages"] = int64_t(k.size());
    return call_rk_dense(y, k, c);
  }

  // dy = sum_i g_i, dk = c^T g and dc = g k^T: torch's products, which know their derivatives.
  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    const size_t n = ctx->saved_data["stages"].toInt();
    variable_list grads(n + 2);
    const Tensor& g = upstream[0];
    if (!g.defined()) return grads;
    if (ctx->needs_input_grad(0)) grads[0] = g.sum(0);
    const variable_list saved = ctx->get_saved_variables();
    const Tensor& c = saved[0];
    const auto narrow = g.scalar_type(), wide = accumulate_type(narrow);
    const c10::SymInt m = g.sym_size(0);
    c10::SymInt numel = 1;
    for (int64_t d = 1; d < g.dim(); ++d) numel = numel * g.sym_size(d);
    const Tensor rows = g.to(wide).reshape_symint({m, numel});
    bool any = false;
    for (size_t j = 0; j < n; ++j) any = any || ctx->needs_input_grad(1 + j);
    if (any) {
      const Tensor products =
          c.to(g.device(), wide, /*non_blocking=*/true).t().matmul(rows).to(narrow);
      for (size_t j = 0; j < n; ++j) {
        if (!ctx->needs_input_grad(1 + j)) continue;
        grads[1 + j] = products.select(0, j).reshape_symint(g.sym_sizes().slice(1));
      }
    }
    if (ctx->needs_input_grad(1 + n) && n > 0) {
      const Tensor stages = at::stack(at::TensorList(saved).slice(1)).to(wide);
      const Tensor terms = stages.reshape_symint({c10::SymInt(int64_t(n)), numel});
      grads[1 + n] = rows.matmul(terms.t()).to(c.device(), at::kDouble);
    }
    return grads;
  }
};

Tensor rk_dense_autograd(const Tensor& y, at::TensorList k, const Tensor& c) {
  return RkDense::apply(y, k, c);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastnode, m) { m.def("rk_dense(Tensor y, Tensor[] k, Tensor c) -> Tensor"); }

TORCH_LIBRARY_IMPL(fastnode, CPU, m) { m.impl("rk_dense", rk_dense_cpu); }

#ifdef FASTNODE_WITH_CUDA
TORCH_LIBRARY_IMPL(fastnode, CUDA, m) { m.impl("rk_dense", rk_dense_on_cuda); }
#endif

TORCH_LIBRARY_IMPL(fastnode, Autograd, m) { m.impl("rk_dense", rk_dense_autograd); }

}  // namespace fastnode
