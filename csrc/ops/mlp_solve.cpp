// Schema and CPU implementations of `mlp_solve` and `mlp_solve_backward`.
#include "ops/mlp_solve.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <torch/library.h>

#include "fused/mlp_gradient.h"

namespace fastnode {
namespace {

using at::Tensor;
using std::optional;

template <class F>
void dispatch_real(at::ScalarType dtype, F&& f) {
  if (dtype == at::kDouble) return f(static_cast<double*>(nullptr));
  f(static_cast<float*>(nullptr));
}

template <class T>
const MlpKernels<T>* kernels(int64_t instructions) {
  const MlpKernels<T>* const found = mlp_kernels<T>(InstructionSet(instructions));
  TORCH_CHECK_VALUE(found, "this machine lacks the instruction set asked for");
  return found;
}

std::vector<double> read_times(const Tensor& t) {
  std::vector<double> times;
  TORCH_CHECK_VALUE(mlp_times(t, times),
                    "t must hold at least two finite times, strictly increasing or decreasing, "
                    "on the CPU");
  return times;
}

// [3, edges]: see MlpResult.
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

MlpResult mlp_solve_cpu(const Tensor& y0, const Tensor& t, at::TensorList parameters,
                        at::IntArrayRef layout, int64_t activation, c10::string_view method,
                        double rtol, double atol, at::ArrayRef<double> controller,
                        optional<double> first_step, int64_t max_num_steps, bool counted_anew,
                        const optional<Tensor>& grid, bool perturb, bool stiffness, bool keep,
                        int64_t instructions) {
  const std::vector<LayerTensors> layers = contiguous(mlp_layers(parameters, layout));
  TORCH_CHECK_VALUE(mlp_fits(layers, y0),
                    "y0 and parameters must be float32 or float64 on the CPU, of one dtype, and "
                    "layers must fit each other and the last dimension of y0");
  TORCH_CHECK_VALUE(activation >= 0 && activation < kActivations, "unknown activation ",
                    activation);
  const MlpMethod& with = mlp_method(method);
  MlpOptions options;
  options.tableau = with.tableau;
  options.times = read_times(t);
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

  const Tensor start = y0.contiguous();
  std::vector<int64_t> shape = y0.sizes().vec();
  shape.insert(shape.begin(), int64_t(options.times.size()));
  const Tensor ys = at::empty(shape, y0.options());
  const int64_t batch = y0.numel() / y0.size(-1), parts = options.parts();
  MlpTrace trace;
  Tensor kept;
  shape.insert(shape.begin(), {0, parts});
  shape.erase(shape.begin() + 2);
  dispatch_real(y0.scalar_type(), [&]<class T>(T*) {
    const MlpKernels<T>* const table = kernels<T>(instructions);
    const auto from = sources<T>(layers);
    const bool by_sample = MlpSolve<T>::prefers_rows(from, batch, table->lanes);
    const MlpField<T> field(from, Activation(activation), by_sample, false, table);
    MlpSolve<T> solve(field, by_sample, batch, std::move(options));
    trace = solve.run(start.const_data_ptr<T>(), ys.mutable_data_ptr<T>(),
                      thread_count(field.multiplications() * batch), parallel);
    if (!keep || trace.ending != Ending::kFinished) return;
    shape[0] = int64_t(trace.edges.size()) - 1;
    solve.kept().reserve(shape[0] * parts * y0.numel());
    kept =
        at::from_blob(solve.kept().release(), shape, [](void* x) { std::free(x); }, y0.options());
  });
  if (trace.ending != Ending::kFinished) {
    mlp_calls().fail(trace, y0, max_num_steps);
    TORCH_CHECK(false, "a solve ended without a reason");
  }
  if (!kept.defined()) kept = at::empty(shape, y0.options());
  const Tensor counts = at::empty({2}, at::kLong);
  counts.mutable_data_ptr<int64_t>()[0] = trace.evaluations;
  counts.mutable_data_ptr<int64_t>()[1] = trace.rejected;
  return {ys, step_records(trace), counts, kept};
}

// Gradients of a field's parameters as the caller has them, and the sum over all evaluations of
// their gradient times the weights of the time: what comes from moving all of them in time.
template <class T>
double unpack_parameters(const MlpField<T>& field, const std::vector<LayerTensors>& layers,
                         const T* total, const at::TensorOptions& options,
                         std::vector<Tensor>* out) {
  double of_start = 0;
  for (size_t l = 0; l < layers.size(); ++l) {
    const Layer<T>& layer = field.layers[l];
    const int64_t stride = field.row_stride(layer), constants = layer.constants();
    const int64_t columns = layer.in + (layer.timed ? 1 : 0), place = layers[l].time_column;
    if (layer.timed) {
      for (int64_t m = 0; m < layer.out; ++m) {
        of_start +=
            double(layer.weights[m * layer.depth()]) * double(total[m * stride + constants - 1]);
      }
    }
    if (out) {
      const Tensor weight = at::empty({layer.out, columns}, options);
      T* to = weight.mutable_data_ptr<T>();
      for (int64_t m = 0; m < layer.out; ++m, to += columns) {
        const T* const from = total + m * stride;
        const int64_t before = layer.timed ? place : layer.in;
        std::copy_n(from + constants, before, to);
        if (!layer.timed) continue;
        to[place] = from[0];
        std::copy_n(from + constants + place, layer.in - place, to + place + 1);
      }
      out->push_back(weight);
      if (layers[l].bias.defined()) {
        const Tensor bias = at::empty({layer.out}, options);
        T* const b = bias.mutable_data_ptr<T>();
        for (int64_t m = 0; m < layer.out; ++m) b[m] = total[m * stride + constants - 1];
        out->push_back(bias);
      }
    }
    total += layer.out * stride;
  }
  return of_start;
}

MlpGradientTensors mlp_solve_backward_cpu(const optional<Tensor>& of_ys,
                                          const optional<Tensor>& of_steps, const Tensor& kept,
                                          const Tensor& steps, const Tensor& t,
                                          at::TensorList parameters, at::IntArrayRef layout,
                                          int64_t activation, c10::string_view method, double rtol,
                                          double atol, bool adaptive, bool perturb,
                                          bool of_parameters, bool of_times, int64_t instructions) {
  const std::vector<LayerTensors> layers = contiguous(mlp_layers(parameters, layout));
  const int64_t parts = adaptive ? 2 : 1;
  TORCH_CHECK_VALUE(kept.dim() >= 3 && kept.size(1) == parts && kept.is_contiguous() &&
                        steps.dim() == 2 && steps.size(0) == 3 && steps.is_contiguous() &&
                        steps.scalar_type() == at::kDouble && kept.size(0) == steps.size(1) - 1,
                    "kept and steps must be those of mlp_solve with keep=True, got shapes ",
                    kept.sizes(), " and ", steps.sizes());
  const Tensor gy0 = at::empty(kept.sizes().slice(2), kept.options());
  TORCH_CHECK_VALUE(mlp_fits(layers, gy0), "kept and parameters must fit each other");
  const int64_t dim = gy0.size(-1), batch = gy0.numel() / dim, count = steps.size(1);
  const Tensor upstream = of_ys ? of_ys->to(kept.scalar_type()).contiguous() : Tensor();
  Tensor errors;
  if (of_steps) errors = of_steps->to(at::kDouble).contiguous();
  const double* const records = steps.const_data_ptr<double>();
  const std::vector<double> times = read_times(t);
  TORCH_CHECK_VALUE(!upstream.defined() || upstream.numel() == int64_t(times.size()) * gy0.numel(),
                    "of_ys must have a state for each time, got shape ", of_ys->sizes());
  TORCH_CHECK_VALUE(!errors.defined() || errors.sizes() == steps.sizes(),
                    "of_steps must have the shape of steps, got ", errors.sizes());
  Tensor gt = at::empty({of_times ? int64_t(times.size()) : 0}, at::kDouble);
  std::vector<Tensor> gradients;
  dispatch_real(kept.scalar_type(), [&]<class T>(T*) {
    MlpPath<T> path{mlp_method(method).tableau,
                    times,
                    {records, records + count},
                    adaptive,
                    perturb,
                    kept.const_data_ptr<T>(),
                    records + count + 1,
                    rtol,
                    atol};
    const MlpKernels<T>* const table = kernels<T>(instructions);
    const auto from = sources<T>(layers);
    const bool by_sample = MlpSolve<T>::prefers_rows(from, batch, table->lanes);
    const MlpField<T> field(from, Activation(activation), by_sample, true, table);
    std::vector<std::vector<T>> sums;
    double* const rates = of_times ? gt.mutable_data_ptr<double>() : nullptr;
    const bool needed = of_parameters || of_times;
    mlp_gradient<T>(field, by_sample, batch, path,
                    {upstream.defined() ? upstream.const_data_ptr<T>() : nullptr,
                     errors.defined() ? errors.const_data_ptr<double>() + count + 1 : nullptr},
                    {gy0.mutable_data_ptr<T>(), needed ? &sums : nullptr, rates},
                    thread_count(field.multiplications() * batch), parallel);
    if (!needed) return;
    double of_start = unpack_parameters<T>(field, layers, sums[0].data(), kept.options(),
                                           of_parameters ? &gradients : nullptr);
    if (!of_times) return;
    // Steps begin at the first time and keep their sizes: outputs are as far into a step as they
    // are from the first time.
    for (size_t i = 0; i < times.size(); ++i) of_start -= rates[i];
    rates[0] += of_start;
  });
  return {gy0, gt, gradients};
}

}  // namespace

MlpResult call_mlp_solve(const Tensor& y0, const Tensor& t, at::TensorList parameters,
                         at::IntArrayRef layout, int64_t activation, std::string_view method,
                         double rtol, double atol, at::ArrayRef<double> controller,
                         optional<double> first_step, int64_t max_num_steps, bool counted_anew,
                         const optional<Tensor>& grid, bool perturb, bool stiffness, bool keep,
                         int64_t instructions) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastnode::mlp_solve", "")
                             .typed<decltype(mlp_solve_cpu)>();
  return op.call(y0, t, parameters, layout, activation, method, rtol, atol, controller, first_step,
                 max_num_steps, counted_anew, grid, perturb, stiffness, keep, instructions);
}

MlpGradientTensors call_mlp_solve_backward(
    const optional<Tensor>& of_ys, const optional<Tensor>& of_steps, const Tensor& kept,
    const Tensor& steps, const Tensor& t, at::TensorList parameters, at::IntArrayRef layout,
    int64_t activation, std::string_view method, double rtol, double atol, bool adaptive,
    bool perturb, bool of_parameters, bool of_times, int64_t instructions) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastnode::mlp_solve_backward", "")
                             .typed<decltype(mlp_solve_backward_cpu)>();
  return op.call(of_ys, of_steps, kept, steps, t, parameters, layout, activation, method, rtol,
                 atol, adaptive, perturb, of_parameters, of_times, instructions);
}

TORCH_LIBRARY_FRAGMENT(fastnode, m) {
  m.def(
      "mlp_solve(Tensor y0, Tensor t, Tensor[] parameters, int[] layout, int activation, "
      "str method, float rtol, float atol, float[] controller, float? first_step, "
      "int max_num_steps, bool counted_anew, Tensor? grid, bool perturb, bool stiffness, "
      "bool keep, int instructions) -> (Tensor ys, Tensor steps, Tensor counts, Tensor kept)");
  m.def(
      "mlp_solve_backward(Tensor? of_ys, Tensor? of_steps, Tensor kept, Tensor steps, Tensor t, "
      "Tensor[] parameters, int[] layout, int activation, str method, float rtol, float atol, "
      "bool adaptive, bool perturb, bool of_parameters, bool of_times, int instructions) "
      "-> (Tensor of_y0, Tensor of_t, Tensor[] of_parameters)");
}

TORCH_LIBRARY_IMPL(fastnode, CPU, m) {
  m.impl("mlp_solve", mlp_solve_cpu);
  m.impl("mlp_solve_backward", mlp_solve_backward_cpu);
}

}  // namespace fastnode
