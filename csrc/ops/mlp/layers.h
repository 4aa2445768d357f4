// Layers of torch for the solves of csrc/fused, and the threads that run them.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <omp.h>

#include <functional>
#include <vector>

#include "fields/generated.h"
#include "mlp/cpu/field.h"

namespace fastnode {

// A linear layer: weight [out, in], or [out, in + 1] with the time's column at `time_column` (-1 if
// it has none); bias [out] or undefined.
struct LayerTensors {
  at::Tensor weight, bias;
  int64_t time_column;
};

// A generated field: its code, and the tensors that it holds.
struct GeneratedCode {
  const void *value, *vjp;  // FieldCode of the dtype; the latter may be null
  at::ScalarType dtype;
  std::vector<int64_t> shape;  // of a sample
  std::vector<int64_t> ends;   // of the parts of a sample, see Field::parts
  std::vector<int64_t> sizes;  // numbers of each input
  int64_t differentiable;      // inputs with gradients, the first ones
  int64_t multiplications;     // of one evaluation of one sample
};

// Numbers of fields from here on are those of generated ones; below, of activations.
constexpr int64_t kFirstGenerated = 1 << 16;
// Keeps it for good; returns its number.
int64_t register_generated(GeneratedCode code);

// What is solved: the layers of an MLP and its activation, or a generated field and its inputs.
struct FieldTensors {
  std::vector<LayerTensors> layers;
  int64_t number = 0;
  const GeneratedCode* generated = nullptr;
  std::vector<at::Tensor> inputs;

  // From the ops' arguments (see mlp_layers).
  static FieldTensors from(at::TensorList parameters, at::IntArrayRef layout, int64_t number);
  // Numbers of a sample of y0.
  int64_t dim(const at::Tensor& y0) const {
    return generated ? y0.numel() / std::max<int64_t>(y0.size(0), 1) : y0.size(-1);
  }
  FieldTensors contiguous() &&;
};

// Multiplications of one evaluation for the whole batch from which a second thread pays. Measured
// with two cores: waking it costs some 5 us a solve and a meeting some 0.3 us a step.
constexpr int64_t kThreadWork = 100'000;

inline void parallel(int threads, const std::function<void(int)>& prepare,
                     const std::function<void(int, int)>& body) {
#pragma omp parallel num_threads(threads)
  {
#pragma omp single
    prepare(omp_get_num_threads());
    body(omp_get_thread_num(), omp_get_num_threads());
  }
}

inline int thread_count(int64_t work) {
  if (work < kThreadWork || at::in_parallel_region()) return 1;
  return at::get_num_threads();
}

template <class T>
std::vector<typename MlpField<T>::Source> sources(const std::vector<LayerTensors>& layers) {
  std::vector<typename MlpField<T>::Source> out;
  out.reserve(layers.size());
  for (const LayerTensors& each : layers) {
    const int64_t in = each.weight.size(1) - (each.time_column >= 0 ? 1 : 0);
    out.push_back({in, each.weight.size(0), each.weight.const_data_ptr<T>(),
                   each.bias.defined() ? each.bias.const_data_ptr<T>() : nullptr,
                   each.time_column});
  }
  return out;
}

inline std::vector<LayerTensors> contiguous(std::vector<LayerTensors> layers) {
  for (LayerTensors& each : layers) {
    if (!each.weight.is_contiguous()) each.weight = each.weight.contiguous();
    if (each.bias.defined() && !each.bias.is_contiguous()) each.bias = each.bias.contiguous();
  }
  return layers;
}

// f(the field), made for a batch, with or without gradients.
template <class T, class F>
void with_field(const FieldTensors& of, int64_t dim, int64_t batch, bool gradients,
                int64_t instructions, F f) {
  const MlpKernels<T>* const kernels = mlp_kernels<T>(InstructionSet(instructions));
  TORCH_CHECK_VALUE(kernels, "this machine lacks the instruction set asked for");
  if (!of.generated) {
    return f(MlpField<T>(sources<T>(of.layers), Activation(of.number), batch, gradients, kernels));
  }
  const GeneratedCode& code = *of.generated;
  TORCH_CHECK_VALUE(!gradients || code.vjp, "the field was generated without gradients");
  std::vector<const T*> inputs;
  for (const at::Tensor& each : of.inputs) {
    inputs.push_back(each.scalar_type() == code.dtype ? each.const_data_ptr<T>() : nullptr);
  }
  f(GeneratedField<T>(*static_cast<const FieldCode<T>*>(code.value),
                      gradients ? static_cast<const FieldCode<T>*>(code.vjp) : nullptr,
                      std::move(inputs),
                      {code.sizes.begin(), code.sizes.begin() + code.differentiable}, code.ends,
                      dim, code.multiplications, kernels));
}

// Gradients of a field's parameters as the caller has them, and the sum over all evaluations of
// their gradient times the weights of the time: what comes from moving all of them in time.
template <class T>
double unpack_parameters(const Field<T>& field, const FieldTensors& of, const T* total,
                         const at::TensorOptions& options, std::vector<at::Tensor>* out);

}  // namespace fastnode
