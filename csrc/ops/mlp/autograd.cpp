// Autograd of `mlp_solve`.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
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
          mlp_calls().replay(saved_y0.unpack(), t, parameters, layout, activation, method, rtol,
                             atol, adaptive, perturb, steps, upstream[0], upstream[1]);
      for (size_t i = 0; i < count; ++i) {
        if (task_should_compute_output(i)) grads[i] = found[i];
      }
      return grads;
    }
    // Gradients of this one come by `replay`: no need to look for any.
    const at::AutoDispatchBelowADInplaceOrView below;
    const TapeGuard reads(tape.get());
    const auto given = [](const Tensor& x) {
      return x.defined() ? optional<Tensor>(x) : optional<Tensor>();
    };
    const auto [of_y0, of_t, found] = call_mlp_solve_backward(
        given(upstream[0]), given(upstream[1]), (slots ? saved_y0 : saved_kept).unpack(), steps, t,
        parameters, layout, activation, method, rtol, atol, adaptive, perturb, of_parameters,
        of_times, slots, instructions);
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
  std::string method;
  int64_t activation = 0, instructions = 0;
  double rtol = 0, atol = 0;
  bool adaptive = true, perturb = false;
  optional<int64_t> slots;
  std::shared_ptr<Tape> tape;
};

MlpResult mlp_solve_autograd(const Tensor& y0, const Tensor& t, at::TensorList parameters,
                             at::IntArrayRef layout, int64_t activation, c10::string_view method,
                             double rtol, double atol, at::ArrayRef<double> controller,
                             optional<double> first_step, int64_t max_num_steps, bool counted_anew,
                             const optional<Tensor>& grid, bool perturb, bool stiffness, bool keep,
                             bool tape, optional<int64_t> slots, int64_t instructions) {
  bool graph = false;
  if (at::GradMode::is_enabled()) {
    graph = y0.requires_grad() || t.requires_grad();
    for (const Tensor& each : parameters) graph = graph || each.requires_grad();
    TORCH_CHECK_VALUE(!(t.requires_grad() && controller.empty()),
                      "times of steps along a grid have no gradients here");
  }
  const std::shared_ptr<Tape> written = graph && tape && !slots ? make_tape() : nullptr;
  MlpResult result = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    const TapeGuard writes(written.get());
    return call_mlp_solve(y0, t, parameters, layout, activation, method, rtol, atol, controller,
                          first_step, max_num_steps, counted_anew, grid, perturb, stiffness,
                          keep || (graph && !slots), tape, slots, instructions);
  }();
  if (!graph) return result;
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
  if (!slots) node->saved_kept = SavedVariable(kept, false);
  node->layout = layout.vec();
  node->method = std::string(method);
  node->activation = activation;
  node->instructions = instructions;
  node->rtol = rtol;
  node->atol = atol;
  node->adaptive = !controller.empty();
  node->perturb = perturb;
  node->slots = slots;
  node->tape = written;
  node->set_next_edges(torch::autograd::collect_next_edges(inputs));
  torch::autograd::set_history(ys, owner);
  torch::autograd::set_history(steps, owner);
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastnode, Autograd, m) { m.impl("mlp_solve", mlp_solve_autograd); }

}  // namespace fastnode
