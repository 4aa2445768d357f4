// What the solves of perceptrons are told by the ops' arguments, and their records as a tensor.
#include <ATen/ops/empty.h>

#include "ops/mlp/solve.h"

namespace fastnode {

using at::Tensor;

std::vector<double> read_times(const Tensor& t) {
  std::vector<double> times;
  TORCH_CHECK_VALUE(mlp_times(t, times),
                    "t must hold at least two finite times, strictly increasing or decreasing, "
                    "on the CPU");
  return times;
}

MlpOptions mlp_options(std::vector<double> times, int64_t activation, const MlpMethod& with,
                       double rtol, double atol, at::ArrayRef<double> controller,
                       std::optional<double> first_step, int64_t max_num_steps, bool counted_anew,
                       const std::optional<Tensor>& grid, bool perturb, bool stiffness, bool keep) {
  TORCH_CHECK_VALUE(activation >= 0 && activation < kActivations, "unknown activation ",
                    activation);
  MlpOptions options;
  options.tableau = with.tableau;
  options.times = std::move(times);
  options.adaptive = !controller.empty();
  if (options.adaptive) {
    TORCH_CHECK_VALUE(controller.size() == 9 && !with.tableau->error.stages.empty(),
                      "a method with an error estimate takes the nine numbers of a controller, "
                      "got ",
                      controller.size());
    const auto& c = controller;
    options.controller = {c[0], c[1], c[2], c[3], c[4],
                          c[5], c[6], c[7], c[8], with.tableau->order};
  } else {
    TORCH_CHECK_VALUE(grid, "steps of given sizes need a grid");
    options.grid = read_times(*grid);
    TORCH_CHECK_VALUE(options.grid.front() == options.times.front() &&
                          options.grid.back() == options.times.back(),
                      "grid must begin and end with t");
  }
  options.rtol = rtol;
  options.atol = atol;
  options.first_step = first_step;
  options.max_num_steps = max_num_steps;
  options.counted_anew = counted_anew;
  if (stiffness) options.pair = with.pair;
  options.perturb = perturb;
  options.keep_states = keep;
  return options;
}

Tensor step_records(const MlpTrace& trace) {
  const int64_t count = int64_t(trace.edges.size());
  const Tensor out = at::empty({3, count}, at::kDouble);
  double* const to = out.mutable_data_ptr<double>();
  std::fill_n(to, 3 * count, 0.0);
  std::copy(trace.edges.begin(), trace.edges.end(), to);
  std::copy(trace.error.begin(), trace.error.end(), to + count + 1);
  std::copy(trace.stiffness.begin(), trace.stiffness.end(), to + 2 * count + 1);
  return out;
}

}  // namespace fastnode
