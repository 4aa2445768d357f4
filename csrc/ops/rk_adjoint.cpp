// Schema, checks, CPU and CUDA implementations and autograd of `rk_adjoint`.
#include "kernels/rk/rk_adjoint.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty_like.h>
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

void check_sum(at::TensorList x, size_t weights) {
  TORCH_CHECK_VALUE(!x.empty() && x.size() == weights,
                    "x and c must have one length of at least 1, got ", x.size(), " and ", weights);
  for (const Tensor& each : x) check_like(each, x[0], "each of x");
}

// Calls f(base, terms, typed) for groups of terms that a kernel takes; the second and later ones
// are added to what the first left in `out`.
template <class F>
void in_groups(at::TensorList x, at::ArrayRef<double> c, const Tensor& out, F&& f) {
  dispatch_floating(out.scalar_type(), "rk_adjoint", [&]<class T>(T*) {
    const T* base = nullptr;
    for (size_t first = 0; first < x.size(); first += kMaxTerms) {
      const size_t count = std::min<size_t>(kMaxTerms, x.size() - first);
      const ContiguousTerms terms(x.slice(first, count), c.slice(first, count));
      f(base, terms.as<T>(), mutable_data<T>(out));
      base = data<T>(out);
    }
  });
}

Tensor rk_adjoint_cpu(at::TensorList x, at::ArrayRef<double> c) {
  check_sum(x, c.size());
  Tensor out = empty_result(x[0].contiguous());
  in_groups(x, c, out, [&]<class T>(const T* base, const Terms<T>& terms, T* to) {
    at::parallel_for(0, out.numel(), kGrain, [&](int64_t begin, int64_t end) {
      rk_adjoint_range(base, terms, begin, end, to);
    });
  });
  return out;
}

#ifdef FASTNODE_WITH_CUDA
Tensor rk_adjoint_on_cuda(at::TensorList x, at::ArrayRef<double> c) {
  check_sum(x, c.size());
  void* const stream = current_cuda_stream(x[0].device(), "rk_adjoint");
  const c10::DeviceGuard guard(x[0].device());
  Tensor out = at::empty_like(x[0], at::MemoryFormat::Contiguous);
  in_groups(x, c, out, [&]<class T>(const T* base, const Terms<T>& terms, T* to) {
    const int error = rk_adjoint_cuda(base, terms, out.numel(), to, stream);
    TORCH_CHECK(error == 0, "rk_adjoint: CUDA error ", error);
  });
  return out;
}
#endif

Tensor call_rk_adjoint(at::TensorList x, at::ArrayRef<double> c) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastnode::rk_adjoint", "")
                             .typed<decltype(rk_adjoint_cpu)>();
  return op.call(x, c);
}

struct RkAdjoint : torch::autograd::Function<RkAdjoint> {
  static Tensor forward(AutogradContext* ctx, at::TensorList x, at::ArrayRef<double> c) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->set_materialize_grads(false);
    ctx->saved_data["c"] = c.vec();
    return call_rk_adjoint(x, c);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    const std::vector<double> c = ctx->saved_data["c"].toDoubleVector();
    variable_list grads(c.size() + 1);
    for (size_t j = 0; upstream[0].defined() && j < c.size(); ++j) {
      if (ctx->needs_input_grad(j)) grads[j] = upstream[0] * c[j];
    }
    return grads;
  }
};

Tensor rk_adjoint_autograd(at::TensorList x, at::ArrayRef<double> c) {
  return RkAdjoint::apply(x, c);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastnode, m) { m.def("rk_adjoint(Tensor[] x, float[] c) -> Tensor"); }

TORCH_LIBRARY_IMPL(fastnode, CPU, m) { m.impl("rk_adjoint", rk_adjoint_cpu); }

#ifdef FASTNODE_WITH_CUDA
TORCH_LIBRARY_IMPL(fastnode, CUDA, m) { m.impl("rk_adjoint", rk_adjoint_on_cuda); }
#endif

TORCH_LIBRARY_IMPL(fastnode, Autograd, m) { m.impl("rk_adjoint", rk_adjoint_autograd); }

}  // namespace fastnode
