// CUDA implementation of `mlp_solve_backward`.
#include "ops/mlp/backward_cuda.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "mlp/cuda/backward.h"
#include "ops/cuda_stream.h"
#include "ops/mlp/device.h"
#include "ops/mlp/solve.h"

namespace fastnode {

#ifdef FASTNODE_WITH_CUDA
namespace {

using at::Tensor;
using std::optional;

// Steps begin at the first time and keep their sizes: outputs are as far into a step as they are
// from the first time. What comes from moving all evaluations in time is the gradient of the biases
// of layers that see the time, times its weights.
void move_start(const std::vector<LayerTensors>& layers, const std::vector<Tensor>& biases,
                const Tensor& rates) {
  Tensor of_start = -rates.sum();
  for (size_t l = 0; l < layers.size(); ++l) {
    if (layers[l].time_column < 0) continue;
    const Tensor of_time = layers[l].weight.detach().select(1, layers[l].time_column);
    of_start += (of_time.to(at::kDouble) * biases[l].to(at::kDouble)).sum();
  }
  rates.select(0, 0).add_(of_start);
}

template <class T>
DeviceGradients follow(const std::vector<LayerTensors>& layers, Activation activation,
                       const DevicePath& path, const Tensor& of_ys, bool of_parameters,
                       bool of_times) {
  void* const stream = current_cuda_stream(of_ys.device(), "mlp_solve_backward");
  const c10::DeviceGuard guard(of_ys.device());
  DeviceGradients out;
  out.y0 = at::empty(of_ys.sizes().slice(1), of_ys.options());
  MlpBackTask<T> task{};
  describe<T>(task, MlpKind::kBackward, layers, activation, *path.tableau, {}, out.y0);
  const Tensor weights = pack_weights(task, of_ys, stream);
  task.output_count = of_ys.size(0);
  task.times = path.times.const_data_ptr<double>();
  task.perturb = path.perturb;
  task.adaptive = path.adaptive;
  task.of_ys = of_ys.const_data_ptr<T>();
  task.kept = path.kept.const_data_ptr<T>();
  task.edges = path.edges.const_data_ptr<double>();
  task.steps = path.edges.numel() - 1;
  if (path.offsets.defined()) {
    task.offsets = path.offsets.const_data_ptr<int64_t>();
    task.directions = path.directions.const_data_ptr<double>();
  }
  task.gy0 = out.y0.mutable_data_ptr<T>();
  Tensor sums, output_rates;
  MlpGradientSums<T> totals{};
  totals.field = task.field;
  totals.blocks = task.plan.blocks;
  totals.output_count = task.output_count;
  std::vector<Tensor> biases;
  if (of_parameters || of_times) {
    sums = at::empty({task.plan.blocks, mlp_numbers(task.field)}, of_ys.options());
    totals.sums = task.sums = sums.mutable_data_ptr<T>();
    for (size_t l = 0; l < layers.size(); ++l) {
      const bool biased = layers[l].bias.defined();
      biases.push_back(at::empty({layers[l].weight.size(0)}, of_ys.options()));
      totals.biases[l] = biases.back().mutable_data_ptr<T>();
      if (!of_parameters) continue;
      out.parameters.push_back(at::empty(layers[l].weight.sizes(), of_ys.options()));
      totals.weights[l] = out.parameters.back().mutable_data_ptr<T>();
      if (biased) out.parameters.push_back(biases.back());
    }
  }
  if (of_times) {
    const auto numbers = of_ys.options().dtype(at::kDouble);
    output_rates = at::empty({task.plan.blocks, task.output_count}, numbers);
    out.times = at::empty({task.output_count}, numbers);
    totals.output_rates = task.output_rates = output_rates.mutable_data_ptr<double>();
    totals.rates = out.times.mutable_data_ptr<double>();
  }
  check_launch(mlp_backward_cuda(task, stream));
  if (sums.defined()) check_launch(mlp_sum_gradients_cuda(totals, stream));
  if (of_times) move_start(layers, biases, out.times);
  return out;
}

MlpGradientTensors mlp_solve_backward_on_cuda(
    const optional<Tensor>& of_ys, const optional<Tensor>& of_steps, const Tensor& kept,
    const Tensor& steps, const Tensor& t, at::TensorList parameters, at::IntArrayRef layout,
    int64_t activation, c10::string_view method, at::ArrayRef<double> numbers,
    at::IntArrayRef settings, bool of_parameters, bool of_times) {
  const MlpRequest request = MlpRequest::from(method, numbers, settings);
  const bool adaptive = request.adaptive();
  const std::vector<LayerTensors> layers = contiguous(mlp_layers(parameters, layout));
  TORCH_CHECK_VALUE(!request.revolves(),
                    "adjoint must not be revolve on a GPU: its solves keep where steps began");
  TORCH_CHECK_VALUE(!of_steps, "of_steps must be none on a GPU: errors have no gradients there");
  TORCH_CHECK_VALUE(steps.dim() == 2 && steps.size(0) == 3 && steps.is_cpu() &&
                        steps.is_contiguous() && steps.scalar_type() == at::kDouble &&
                        steps.size(1) > 1,
                    "steps must be those of mlp_solve, got shape ", steps.sizes());
  TORCH_CHECK_VALUE(kept.is_cuda() && kept.dim() >= 3 && kept.size(1) == (adaptive ? 2 : 1) &&
                        kept.size(0) == steps.size(1) - 1,
                    "kept must be that of mlp_solve with keep=True, got shape ", kept.sizes());
  TORCH_CHECK_VALUE(mlp_fits(layers, kept.select(0, 0).select(0, 0)),
                    "kept and parameters must fit each other");
  const std::vector<double> times = read_times(t.cpu());
  std::vector<int64_t> shape = kept.sizes().slice(2).vec();
  shape.insert(shape.begin(), int64_t(times.size()));
  TORCH_CHECK_VALUE(!of_ys || of_ys->sizes() == at::IntArrayRef(shape),
                    "of_ys must have a state for each time, got shape ", of_ys->sizes());
  const Tensor upstream =
      of_ys ? of_ys->to(kept.scalar_type()).contiguous() : at::zeros(shape, kept.options());
  const double* const edges = steps.const_data_ptr<double>();
  const DevicePath path{mlp_method(request.method).tableau,
                        adaptive,
                        request.perturb,
                        upload(times, kept.device()),
                        kept.contiguous(),
                        upload({edges, edges + steps.size(1)}, kept.device()),
                        {},
                        {}};
  DeviceGradients found = mlp_gradients_on_gpu(layers, checked_activation(activation), path,
                                               upstream, of_parameters, of_times);
  return {found.y0, of_times ? found.times.cpu() : at::empty({0}, at::kDouble),
          std::move(found.parameters)};
}

}  // namespace

DeviceGradients mlp_gradients_on_gpu(const std::vector<LayerTensors>& layers, Activation activation,
                                     const DevicePath& path, const Tensor& of_ys,
                                     bool of_parameters, bool of_times) {
  const auto run = of_ys.scalar_type() == at::kDouble ? follow<double> : follow<float>;
  return run(layers, activation, path, of_ys, of_parameters, of_times);
}

TORCH_LIBRARY_IMPL(fastnode, CUDA, m) { m.impl("mlp_solve_backward", mlp_solve_backward_on_cuda); }
#else
DeviceGradients mlp_gradients_on_gpu(const std::vector<LayerTensors>&, Activation,
                                     const DevicePath&, const at::Tensor&, bool, bool) {
  TORCH_CHECK(false, "fastnode._C was built without CUDA");
}
#endif

}  // namespace fastnode
