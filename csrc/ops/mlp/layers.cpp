// Layers of MLPs: what solves take, and their gradients in the caller's layout.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <deque>
#include <mutex>

#include "ops/mlp/solve.h"

namespace fastnode {

using at::Tensor;

std::vector<LayerTensors> mlp_layers(at::TensorList parameters, at::IntArrayRef layout) {
  TORCH_CHECK_VALUE(layout.size() % 2 == 0, "layout must have two numbers for each layer, got ",
                    layout.size());
  std::vector<LayerTensors> layers;
  layers.reserve(layout.size() / 2);
  size_t next = 0;
  for (size_t l = 0; l < layout.size(); l += 2) {
    const size_t count = layout[l + 1] ? 2 : 1;
    TORCH_CHECK_VALUE(next + count <= parameters.size(),
                      "parameters must have a weight for each layer and its bias, got ",
                      parameters.size(), " tensors");
    layers.push_back({parameters[next], count == 2 ? parameters[next + 1] : Tensor(), layout[l]});
    next += count;
  }
  TORCH_CHECK_VALUE(next == parameters.size(), "parameters must have ", next, " tensors, got ",
                    parameters.size());
  return layers;
}

Activation checked_activation(int64_t number) {
  TORCH_CHECK_VALUE(number >= 0 && number < kActivations, "unknown activation ", number);
  return Activation(number);
}

MlpArguments mlp_arguments(const FieldTensors& of) {
  MlpArguments out;
  if (of.generated) return {of.inputs, {}};
  for (const LayerTensors& each : of.layers) {
    out.parameters.push_back(each.weight);
    if (each.bias.defined()) out.parameters.push_back(each.bias);
    out.layout.insert(out.layout.end(), {each.time_column, each.bias.defined() ? 1 : 0});
  }
  return out;
}

bool mlp_fits(const FieldTensors& of, const Tensor& y0) {
  if (!of.generated) return mlp_fits(of.layers, y0);
  const GeneratedCode& code = *of.generated;
  if (!y0.is_cpu() || y0.layout() != at::kStrided || y0.scalar_type() != code.dtype ||
      y0.numel() == 0 || y0.dim() != int64_t(code.shape.size()) + 1 ||
      y0.sizes().slice(1) != code.shape || of.inputs.size() != code.sizes.size()) {
    return false;
  }
  for (size_t i = 0; i < of.inputs.size(); ++i) {
    const Tensor& each = of.inputs[i];
    if (!each.is_cpu() || each.layout() != at::kStrided || each.numel() != code.sizes[i]) {
      return false;
    }
    if (each.is_floating_point() && each.scalar_type() != code.dtype) return false;
  }
  return true;
}

bool mlp_fits(const std::vector<LayerTensors>& layers, const Tensor& y0) {
  const auto dtype = y0.scalar_type();
  if (!(y0.is_cpu() || y0.is_cuda()) || y0.layout() != at::kStrided || y0.is_conj() ||
      y0.is_neg() || (dtype != at::kFloat && dtype != at::kDouble) || y0.dim() < 1 ||
      y0.numel() == 0) {
    return false;
  }
  const auto alike = [&](const Tensor& x, int64_t dim) {
    return x.device() == y0.device() && x.scalar_type() == dtype && x.layout() == at::kStrided &&
           x.dim() == dim;
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

// Measured with two threads of an AMD EPYC (Zen 4), tanh, dopri5 at 1e-4, how many times faster
// than the native engine, (state, hidden, batch): without gradients (512, 512, 1024) 1.22, (1024,
// 1024, 256) 1.45, (2048, 2048, 128) 1.03, (64, 2048, 64) 2.4, (784, 2048, 16) 0.73, which is one
// tile and so one thread; forward and backward 0.91, 0.95, 0.72, 1.43 and 0.67: computing the
// stages again costs a third more than keeping them, but a small part of the memory.
bool mlp_pays(const std::vector<LayerTensors>& layers, const Tensor& y0, bool graph) {
  int64_t weights = 0;
  for (const LayerTensors& each : layers) weights += each.weight.numel();
  const int64_t batch = y0.numel() / y0.size(-1);
  if (batch >= 8 && batch <= 32 && weights > (int64_t(1) << 20)) return at::get_num_threads() == 1;
  return weights <= int64_t(1) << (graph ? 20 : 23);
}

namespace {

// Backward passes look fields up on threads of their own, while others are registered.
struct Registry {
  std::mutex mutex;
  std::deque<GeneratedCode> codes;  // which stay where they are

  static Registry& instance() {
    static Registry* const registry = new Registry();
    return *registry;
  }
};

template <class T>
double unpack_inputs(const FieldTensors& of, const T* total, std::vector<Tensor>* out) {
  const T* from = total + 1;
  for (size_t i = 0; out && i < of.inputs.size(); ++i) {
    const Tensor& input = of.inputs[i];
    if (int64_t(i) >= of.generated->differentiable) {
      out->emplace_back();
      continue;
    }
    const Tensor gradient = at::empty(input.sizes(), input.options());
    std::copy_n(from, input.numel(), gradient.mutable_data_ptr<T>());
    from += input.numel();
    out->push_back(gradient);
  }
  return double(total[0]);
}

}  // namespace

int64_t register_generated(GeneratedCode code) {
  Registry& registry = Registry::instance();
  const std::lock_guard<std::mutex> lock(registry.mutex);
  registry.codes.push_back(std::move(code));
  return kFirstGenerated + int64_t(registry.codes.size()) - 1;
}

FieldTensors FieldTensors::from(at::TensorList parameters, at::IntArrayRef layout, int64_t number) {
  FieldTensors out;
  out.number = number;
  if (number < kFirstGenerated) {
    out.layers = mlp_layers(parameters, layout);
    return out;
  }
  Registry& registry = Registry::instance();
  const std::lock_guard<std::mutex> lock(registry.mutex);
  const size_t place = size_t(number - kFirstGenerated);
  TORCH_CHECK_VALUE(place < registry.codes.size(), "unknown field ", number);
  out.generated = &registry.codes[place];
  out.inputs = parameters.vec();
  return out;
}

FieldTensors FieldTensors::contiguous() && {
  layers = fastnode::contiguous(std::move(layers));
  for (Tensor& each : inputs) {
    if (!each.is_contiguous()) each = each.contiguous();
  }
  return std::move(*this);
}

template <class T>
double unpack_parameters(const Field<T>& given, const FieldTensors& of, const T* total,
                         const at::TensorOptions& options, std::vector<Tensor>* out) {
  if (of.generated) return unpack_inputs(of, total, out);
  const auto& field = static_cast<const MlpField<T>&>(given);
  const std::vector<LayerTensors>& layers = of.layers;
  double of_start = 0;
  std::vector<T> rows;
  for (size_t l = 0; l < layers.size(); ++l) {
    const Layer<T>& layer = field.layers[l];
    const int64_t constants = layer.constants(), stride = field.row_stride(layer);
    const T* const found = field.gradient_rows(layer, total, rows);
    total += field.gradient_numbers(layer);
    const int64_t columns = layer.in + (layer.timed ? 1 : 0), place = layers[l].time_column;
    if (layer.timed) {
      for (int64_t m = 0; m < layer.out; ++m) {
        of_start +=
            double(layer.weights[m * layer.depth()]) * double(found[m * stride + constants - 1]);
      }
    }
    if (out) {
      const Tensor weight = at::empty({layer.out, columns}, options);
      T* to = weight.mutable_data_ptr<T>();
      for (int64_t m = 0; m < layer.out; ++m, to += columns) {
        const T* const from = found + m * stride;
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
        for (int64_t m = 0; m < layer.out; ++m) b[m] = found[m * stride + constants - 1];
        out->push_back(bias);
      }
    }
  }
  return of_start;
}

template double unpack_parameters<float>(const Field<float>&, const FieldTensors&, const float*,
                                         const at::TensorOptions&, std::vector<Tensor>*);
template double unpack_parameters<double>(const Field<double>&, const FieldTensors&, const double*,
                                          const at::TensorOptions&, std::vector<Tensor>*);

}  // namespace fastnode
