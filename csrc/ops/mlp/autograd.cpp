// Autograd of `mlp_solve`.
#include <ATen/LegacyBatchedTensorImpl.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include <type_traits>

#include "ops/mlp/solve.h"

namespace fastnode {
namespace {

using at::Tensor;
using std::optional;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// torch 2.13 counts references to nodes inside them, older ones beside them.
template <class Pointer, class Made>
Pointer hold(Made*& made) {
  if constexpr (std::is_constructible_v<Pointer, std::shared_ptr<Made>>) {
    auto owner = std::make_shared<Made>();
    made = owner.get();
    return owner;
  } else {
    auto owner = c10::make_intrusive<Made>();
    made = owner.get();
    return owner;
  }
}

// Edges: y0, t, parameters. Of the op's results the states and the records of steps have gradients.
struct MlpSolveBackward : torch::autograd::Node {
  variable_list apply(variable_list&& upstream) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const Tensor& each : upstream) {
      if (each.defined() && at::isBatchedTensor(each)) return apply_batched(upstream);
    }
    return gradients(upstream);
  }

  // Of several cotangents at once, as torch.autograd.functional.jacobian(vectorize=True) gives
  // them: one after the other.
  variable_list apply_batched(const variable_list& upstream) {
    std::vector<variable_list> parts;
    int64_t level = 0, count = 0;
    // The cotangents of such a batch have one dimension of it, whatever the caller vectorises.
    const auto batched = [](const Tensor& x) {
      return x.defined() ? at::maybeGetBatchedImpl(x) : nullptr;
    };
    for (const Tensor& each : upstream) {
      const auto* const found = batched(each);
      if (!found) continue;
      TORCH_CHECK_VALUE(found->bdims().size() == 1, "cotangents in batches of batches");
      level = found->bdims()[0].level();
      count = found->value().size(found->bdims()[0].dim());
    }
    const c10::impl::ExcludeDispatchKeyGuard plain(c10::DispatchKey::VmapMode);
    for (int64_t i = 0; i < count; ++i) {
      variable_list one;
      for (const Tensor& each : upstream) {
        const auto* const found = batched(each);
        one.push_back(found ? found->value().select(found->bdims()[0].dim(), i) : each);
      }
      parts.push_back(gradients(one));
    }
    variable_list out(num_outputs());
    for (size_t k = 0; k < out.size() && count > 0; ++k) {
      if (!parts[0][k].defined()) continue;
      std::vector<Tensor> rows;
      for (const variable_list& part : parts) rows.push_back(part[k]);
      out[k] = at::makeBatched(at::stack(rows), {at::BatchDim(level, 0)});
    }
    return out;
  }

  variable_list gradients(const variable_list& upstream) {
    const size_t count = num_outputs();
    variable_list grads(count);
    if (!upstream[0].defined() && !upstream[1].defined()) return grads;
    std::vector<Tensor> parameters;
    bool of_parameters = false;
    for (size_t i = 2; i < count; ++i) {
      parameters.push_back(saved_parameters[i - 2].unpack());
      of_parameters = of_parameters || task_should_compute_output(i);
    }
    const bool of_times = task_should_compute_output(1);
    const Tensor t = saved_t.unpack(), steps = saved_steps.unpack();
    if (at::GradMode::is_enabled()) {
      variable_list found =
          mlp_calls().double_backward(saved_y0.unpack(), t, parameters, layout, activation, request,
                                      steps, upstream[0], upstream[1]);
      for (size_t i = 0; i < count; ++i) {
        if (task_should_compute_output(i)) grads[i] = found[i];
      }
      return grads;
    }
    // Gradients of this one come by `double_backward`: no need to look for any.
    const at::AutoDispatchBelowADInplaceOrView below;
    const auto given = [](const Tensor& x) {
      return x.defined() ? optional<Tensor>(x) : optional<Tensor>();
    };
    const Tensor kept = (request.revolves() ? saved_y0 : saved_kept).unpack();
    const MlpSolved solved{request, activation, kept, steps, t};
    const optional<Tensor> of_ys = given(upstream[0]), of_steps = given(upstream[1]);
    const MlpCotangents cotangents{of_ys, of_steps, of_parameters, of_times};
    const auto [of_y0, of_t, found] =
        mlp_runs_directly(kept)
            ? mlp_solve_backward_on_cpu(solved, FieldTensors::from(parameters, layout, activation),
                                        cotangents, tape.get())
            : call_mlp_solve_backward(solved, parameters, layout, cotangents);
    if (task_should_compute_output(0)) grads[0] = of_y0;
    if (of_times) grads[1] = of_t.to(t.scalar_type());
    for (size_t i = 2; i < count; ++i) {
      if (task_should_compute_output(i)) grads[i] = found[i - 2];
    }
    return grads;
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable& each : saved_parameters) each.reset_data();
    tape.reset();
    for (SavedVariable* each : {&saved_y0, &saved_t, &saved_steps, &saved_kept}) {
      each->reset_data();
    }
  }

  std::string name() const override { return "MlpSolveBackward"; }

  std::vector<SavedVariable> saved_parameters;
  SavedVariable saved_y0, saved_t, saved_steps, saved_kept;
  std::vector<int64_t> layout;
  int64_t activation = 0;
  MlpRequest request;
  std::shared_ptr<Tape> tape;
};

MlpResult mlp_solve_autograd(const Tensor& y0, const Tensor& t, const optional<Tensor>& grid,
                             at::TensorList parameters, at::IntArrayRef layout, int64_t activation,
                             c10::string_view method, at::ArrayRef<double> numbers,
                             at::IntArrayRef settings) {
  MlpRequest request = MlpRequest::from(method, numbers, settings);
  bool gradients = false;
  if (at::GradMode::is_enabled()) {
    gradients = y0.requires_grad() || t.requires_grad();
    for (const Tensor& each : parameters) gradients = gradients || each.requires_grad();
    TORCH_CHECK_VALUE(!(t.requires_grad() && !request.adaptive()),
                      "times of fixed steps have no gradients here");
  }
  request.keep = request.keep || (gradients && !request.revolves());
  std::shared_ptr<Tape> tape;
  MlpResult result = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    // A solve that is traced has results of sizes that a graph can know, and no tape.
    if (!mlp_runs_directly(y0)) {
      return call_mlp_solve(y0, t, grid, parameters, layout, activation, request);
    }
    if (gradients && request.adjoint == MlpAdjoint::kBackprop) tape = make_tape();
    return mlp_solve_on_cpu(y0, t, grid, FieldTensors::from(parameters, layout, activation),
                            request, tape.get());
  }();
  if (!gradients) return result;
  auto& [ys, steps, counts, kept] = result;
  MlpSolveBackward* node = nullptr;
  const auto owner = hold<decltype(torch::autograd::Edge::function)>(node);
  variable_list inputs{y0, t};
  inputs.insert(inputs.end(), parameters.begin(), parameters.end());
  node->saved_parameters.reserve(parameters.size());
  for (const Tensor& each : parameters) node->saved_parameters.emplace_back(each, false);
  node->saved_y0 = SavedVariable(y0, false);
  node->saved_t = SavedVariable(t, false);
  // Not the result itself, which will hold the node.
  node->saved_steps = SavedVariable(steps.detach(), false);
  if (!request.revolves()) node->saved_kept = SavedVariable(kept, false);
  node->layout = layout.vec();
  node->activation = activation;
  node->request = std::move(request);
  node->tape = std::move(tape);
  node->set_next_edges(torch::autograd::collect_next_edges(inputs));
  torch::autograd::set_history(ys, owner);
  torch::autograd::set_history(steps, owner);
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastnode, Autograd, m) { m.impl("mlp_solve", mlp_solve_autograd); }

}  // namespace fastnode
