// Layers of torch for the solves of csrc/fused, and the threads that run them.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <omp.h>

#include <functional>
#include <vector>

#include "mlp/cpu/field.h"

namespace fastnode {

// A linear layer: weight [out, in], or [out, in + 1] with the time's column at `time_column` (-1 if
// it has none); bias [out] or undefined.
struct LayerTensors {
  at::Tensor weight, bias;
  int64_t time_column;
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

// Gradients of a field's parameters as the caller has them, and the sum over all evaluations of
// their gradient times the weights of the time: what comes from moving all of them in time.
template <class T>
double unpack_parameters(const MlpField<T>& field, const std::vector<LayerTensors>& layers,
                         const T* total, const at::TensorOptions& options,
                         std::vector<at::Tensor>* out);

}  // namespace fastnode
