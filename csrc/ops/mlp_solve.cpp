#include "ops/mlp_solve.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <mutex>
#include <type_traits>

#include "driver/rows.h"
#include "ops/mlp_layers.h"

namespace fastnode {
namespace {

using at::Tensor;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// What a gradient needs of a solve, whatever its numbers are.
class Memory {
 public:
  virtual ~Memory() = default;
  // Gradients of y0, of `times` and of each layer's weight and bias.
  virtual variable_list gradient(const std::vector<LayerTensors>& layers, Activation activation,
                                 const Tensor& upstream, at::IntArrayRef shape, bool of_parameters,
                                 bool of_times) = 0;
};

template <class T>
class Solve : public Memory {
 public:
  Solve(const std::vector<LayerTensors>& layers, Activation activation, int64_t batch,
        MlpOptions options, const MlpKernels<T>* kernels)
      : kernels_(kernels),
        by_sample_(MlpSolve<T>::prefers_rows(sources<T>(layers), batch, kernels->lanes)),
        field_(sources<T>(layers), activation, by_sample_, false, kernels),
        times_(int64_t(options.times.size())),
        threads_(thread_count(field_.multiplications() * batch)),
        solve_(field_, by_sample_, batch, std::move(options)) {}

  void run(const Tensor& y0, const Tensor& ys) {
    trace = solve_.run(y0.const_data_ptr<T>(), ys.mutable_data_ptr<T>(), threads_, parallel);
  }

  variable_list gradient(const std::vector<LayerTensors>& layers, Activation activation,
                         const Tensor& upstream, at::IntArrayRef shape, bool of_parameters,
                         bool of_times) override {
    const MlpField<T> field(sources<T>(layers), activation, by_sample_, true, kernels_);
    const Tensor gy0 = at::empty(shape, upstream.options());
    std::vector<double> rates(of_times ? size_t(times_) : 0);
    std::vector<std::vector<T>> parts;
    const bool needed = of_parameters || of_times;
    solve_.gradient(field, trace, upstream.const_data_ptr<T>(), gy0.mutable_data_ptr<T>(),
                    needed ? &parts : nullptr, of_times ? rates.data() : nullptr, threads_,
                    parallel);
    variable_list out{gy0, Tensor()};
    double of_start = 0;
    const T* total = needed ? parts[0].data() : nullptr;
    for (size_t l = 0; l < layers.size(); ++l) {
      const Layer<T>& layer = field.layers[l];
      if (!needed) {
        out.insert(out.end(), {Tensor(), Tensor()});
        continue;
      }
      const int64_t stride = field.row_stride(layer), constants = layer.constants();
      const int64_t columns = layer.in + (layer.timed ? 1 : 0), place = layers[l].time_column;
      const Tensor weight = at::empty({layer.out, columns}, upstream.options());
      const Tensor bias = at::empty({layer.out}, upstream.options());
      T *to = weight.mutable_data_ptr<T>(), *const b = bias.mutable_data_ptr<T>();
      for (int64_t m = 0; m < layer.out; ++m, to += columns) {
        const T* const from = total + m * stride;
        b[m] = from[constants - 1];
        const int64_t before = layer.timed ? place : layer.in;
        std::copy_n(from + constants, before, to);
        if (!layer.timed) continue;
        to[place] = from[0];
        std::copy_n(from + constants + place, layer.in - place, to + place + 1);
        // Every evaluation moves with the first time.
        of_start += double(layer.weights[m * layer.depth()]) * double(b[m]);
      }
      total += layer.out * stride;
      out.push_back(weight);
      out.push_back(layers[l].bias.defined() ? bias : Tensor());
    }
    if (of_times) {
      // Steps begin at the first time and keep their sizes: outputs are as far into a step as they
      // are from the first time.
      for (double rate : rates) of_start -= rate;
      rates[0] += of_start;
      out[1] = at::empty({times_}, at::kDouble);
      std::copy(rates.begin(), rates.end(), out[1].mutable_data_ptr<double>());
    }
    return out;
  }

  MlpTrace trace;

 private:
  const MlpKernels<T>* kernels_;
  const bool by_sample_;
  const MlpField<T> field_;
  const int64_t times_;
  const int threads_;
  MlpSolve<T> solve_;
};

struct MlpSolveBackward : torch::autograd::Node {
  variable_list apply(variable_list&& upstream) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    TORCH_CHECK(memory,
                "Trying to backward through a fused solve a second time: what it kept has "
                "been freed. Pass retain_graph=True the first time.");
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "the fused engine knows first derivatives only: for create_graph=True call the "
                "field through a plain function, odeint(lambda t, y: field(t, y), ...)");
    variable_list grads(next_edges().size());
    if (!upstream[0].defined()) return grads;
    std::vector<LayerTensors> layers;
    bool of_parameters = false;
    for (size_t l = 0; l < time_columns.size(); ++l) {
      layers.push_back({saved[2 * l].unpack(), saved[2 * l + 1].unpack(), time_columns[l]});
    }
    for (size_t i = 2; i < grads.size(); ++i) {
      of_parameters = of_parameters || task_should_compute_output(i);
    }
    const bool of_times = task_should_compute_output(1);
    variable_list found =
        memory->gradient(contiguous(layers), activation, upstream[0].to(dtype).contiguous(), shape,
                         of_parameters, of_times);
    if (of_times) found[1] = found[1].to(time_dtype);
    for (size_t i = 0; i < grads.size(); ++i) {
      if (task_should_compute_output(i)) grads[i] = found[i];
    }
    return grads;
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable& each : saved) each.reset_data();
    memory.reset();
  }

  std::string name() const override { return "MlpSolveBackward"; }

  std::unique_ptr<Memory> memory;
  std::vector<SavedVariable> saved;
  std::vector<int64_t> time_columns;
  Activation activation{};
  std::vector<int64_t> shape;
  at::ScalarType dtype{}, time_dtype{};
};

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

}  // namespace

bool mlp_fits(const std::vector<LayerTensors>& layers, const Tensor& y0) {
  const auto dtype = y0.scalar_type();
  if (!y0.is_cpu() || y0.layout() != at::kStrided || y0.is_conj() || y0.is_neg() ||
      (dtype != at::kFloat && dtype != at::kDouble) || y0.dim() < 1 || y0.numel() == 0) {
    return false;
  }
  const auto alike = [&](const Tensor& x, int64_t dim) {
    return x.is_cpu() && x.scalar_type() == dtype && x.layout() == at::kStrided && x.dim() == dim;
  };
  int64_t in = y0.size(-1);
  for (const LayerTensors& each : layers) {
    if (!alike(each.weight, 2)) return false;
    const int64_t columns = each.weight.size(1), out = each.weight.size(0);
    if (out < 1 || columns != in + (each.time_column >= 0 ? 1 : 0)) return false;
    if (each.time_column > in) return false;
    if (each.bias.defined() && !(alike(each.bias, 1) && each.bias.size(0) == out)) return false;
    in = out;
  }
  return !layers.empty() && in == y0.size(-1);
}

namespace {

bool needs_graph(const std::vector<LayerTensors>& layers, const Tensor& y0) {
  if (!at::GradMode::is_enabled()) return false;
  bool graph = y0.requires_grad();
  for (const LayerTensors& each : layers) {
    graph =
        graph || each.weight.requires_grad() || (each.bias.defined() && each.bias.requires_grad());
  }
  return graph;
}

}  // namespace

// Measured with two threads of an AMD EPYC (Zen 4), tanh, dopri5 at 1e-4, how many times faster
// than the native engine, (state, hidden, batch): without gradients (512, 512, 1024) 1.22, (1024,
// 1024, 256) 1.45, (2048, 2048, 128) 1.03, (64, 2048, 64) 2.4, (784, 2048, 16) 0.73, which is one
// tile and so one thread; forward and backward 0.91, 0.95, 0.72, 1.43 and 0.67: computing the
// stages again costs a third more than keeping them, but a small part of the memory.
bool mlp_pays(const std::vector<LayerTensors>& layers, const Tensor& y0) {
  int64_t weights = 0;
  for (const LayerTensors& each : layers) weights += each.weight.numel();
  const int64_t batch = y0.numel() / y0.size(-1);
  if (batch >= 8 && batch <= 32 && weights > (int64_t(1) << 20)) return at::get_num_threads() == 1;
  return weights <= int64_t(1) << (needs_graph(layers, y0) ? 20 : 23);
}

MlpOutcome mlp_solve(const std::vector<LayerTensors>& layers, Activation activation,
                     const Tensor& y0, const std::optional<Tensor>& t, MlpOptions options,
                     InstructionSet instructions) {
  const bool graph =
      needs_graph(layers, y0) || (at::GradMode::is_enabled() && t && t->requires_grad());
  const at::AutoDispatchBelowADInplaceOrView below;
  options.keep_states = graph;
  const std::vector<LayerTensors> plain = contiguous(layers);
  const Tensor start = y0.contiguous();
  std::vector<int64_t> shape = y0.sizes().vec();
  shape.insert(shape.begin(), int64_t(options.times.size()));
  MlpOutcome outcome{at::empty(shape, y0.options()), {}};
  const int64_t batch = y0.numel() / y0.size(-1);
  std::unique_ptr<Memory> memory;
  dispatch_real(y0.scalar_type(), [&]<class T>(T*) {
    const MlpKernels<T>* kernels = mlp_kernels<T>(instructions);
    TORCH_CHECK_VALUE(kernels, "this machine lacks the instruction set asked for");
    auto solve = std::make_unique<Solve<T>>(plain, activation, batch, std::move(options), kernels);
    solve->run(start, outcome.ys);
    outcome.trace = solve->trace;
    if (graph) memory = std::move(solve);
  });
  if (!graph || outcome.trace.ending != Ending::kFinished) return outcome;
  variable_list inputs{y0, t ? *t : Tensor()};
  MlpSolveBackward* node = nullptr;
  const auto owner = hold<decltype(torch::autograd::Edge::function)>(node);
  for (const LayerTensors& each : layers) {
    node->time_columns.push_back(each.time_column);
    for (const Tensor& x : {each.weight, each.bias}) {
      inputs.push_back(x);
      node->saved.emplace_back(x, false);
    }
  }
  node->memory = std::move(memory);
  node->activation = activation;
  node->shape = y0.sizes().vec();
  node->dtype = y0.scalar_type();
  node->time_dtype = t ? t->scalar_type() : at::kDouble;
  node->set_next_edges(torch::autograd::collect_next_edges(inputs));
  torch::autograd::set_history(outcome.ys, owner);
  return outcome;
}

}  // namespace fastnode
