// Schema, checks, CPU and CUDA implementations and autograd of `rk_stage`.
#include "kernels/rk/rk_stage.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "kernels/rk/rk_adjoint.h"
#include "ops/cuda_stream.h"
#include "ops/result_pool.h"
#include "ops/terms.h"

namespace fastnode {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor rk_stage_cpu(const Tensor& y, at::TensorList k, at::ArrayRef<double> c) {
  check_terms(k, c.size(), y);
  const Tensor state = y.contiguous();
  const ContiguousTerms terms(k, c);
  Tensor out = empty_result(state);
  dispatch_floating(y.scalar_type(), "rk_stage", [&]<class T>(T*) {
    const Terms<T> typed = terms.as<T>();
    at::parallel_for(0, y.numel(), kGrain, [&](int64_t begin, int64_t end) {
      rk_stage_range(data<T>(state), typed, begin, end, mutable_data<T>(out));
    });
  });
  return out;
}

#ifdef FASTNODE_WITH_CUDA
Tensor rk_stage_on_cuda(const Tensor& y, at::TensorList k, at::ArrayRef<double> c) {
  check_terms(k, c.size(), y);
  void* const stream = current_cuda_stream(y.device(), "rk_stage");
  const c10::DeviceGuard guard(y.device());
  const Tensor state = y.contiguous();
  const ContiguousTerms terms(k, c);
  Tensor out = at::empty_like(state);
  dispatch_floating(y.scalar_type(), "rk_stage", [&]<class T>(T*) {
    const int error =
        rk_stage_cuda(data<T>(state), terms.as<T>(), y.numel(), mutable_data<T>(out), stream);
    TORCH_CHECK(error == 0, "rk_stage: CUDA error ", error);
  });
  return out;
}
#endif

Tensor call_rk_stage(const Tensor& y, at::TensorList k, at::ArrayRef<double> c) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastnode::rk_stage", "")
                             .typed<decltype(rk_stage_cpu)>();
  return op.call(y, k, c);
}

// c g in memory that the next backward pass finds again: fresh pages would cost more than the
// multiplication (see result_pool.h).
Tensor scaled_result(const Tensor& g, double c) {
  const Tensor from = g.contiguous();
  Tensor out = empty_result(from);
  dispatch_floating(g.scalar_type(), "rk_stage", [&]<class T>(T*) {
    const Terms<T> term{{data<T>(from)}, {acc_t<T>(c)}, 1};
    at::parallel_for(0, g.numel(), kGrain, [&](int64_t begin, int64_t end) {
      rk_adjoint_range(static_cast<const T*>(nullptr), term, begin, end, mutable_data<T>(out));
    });
  });
  return out;
}

struct RkStage : torch::autograd::Function<RkStage> {
  static Tensor forward(AutogradContext* ctx, const Tensor& y, at::TensorList k,
                        at::ArrayRef<double> c) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->set_materialize_grads(false);
    ctx->saved_data["c"] = c.vec();
    return call_rk_stage(y, k, c);
  }

  // Linear in everything: where derivatives of this are asked for, torch's own products know them.
  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    const std::vector<double> c = ctx->saved_data["c"].toDoubleVector();
    const Tensor& g = upstream[0];
    variable_list grads(c.size() + 2);
    if (!g.defined()) return grads;
    if (ctx->needs_input_grad(0)) grads[0] = g;
    const bool plain = may_read({g});
    for (size_t j = 0; j < c.size(); ++j) {
      if (ctx->needs_input_grad(1 + j)) grads[1 + j] = plain ? scaled_result(g, c[j]) : g * c[j];
    }
    return grads;
  }
};

Tensor rk_stage_autograd(const Tensor& y, at::TensorList k, at::ArrayRef<double> c) {
  return RkStage::apply(y, k, c);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastnode, m) {
  m.def("rk_stage(Tensor y, Tensor[] k, float[] c) -> Tensor");
}

TORCH_LIBRARY_IMPL(fastnode, CPU, m) { m.impl("rk_stage", rk_stage_cpu); }

#ifdef FASTNODE_WITH_CUDA
TORCH_LIBRARY_IMPL(fastnode, CUDA, m) { m.impl("rk_stage", rk_stage_on_cuda); }
#endif

TORCH_LIBRARY_IMPL(fastnode, Autograd, m) { m.impl("rk_stage", rk_stage_autograd); }

}  // namespace fastnode
