// Perceptrons of torch for the kernels of kernels/mlp_solve_cuda.h.
#pragma once

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include "mlp/cuda/convert.h"
#include "ops/mlp/layers.h"

namespace fastnode {

inline void check_launch(int error) { TORCH_CHECK(error == 0, "mlp_solve: CUDA error ", error); }

// Of contiguous layers, which must outlive it; nothing if there are more than the kernels take.
template <class T>
std::optional<DeviceField<T>> device_field(const std::vector<LayerTensors>& layers, int64_t dim,
                                           Activation activation) {
  if (layers.size() > size_t(kMostLayers) || dim > 65536) return {};
  DeviceField<T> field{};
  field.count = int(layers.size());
  field.dim = int(dim);
  field.activation = activation;
  const auto from = sources<T>(layers);
  for (size_t l = 0; l < from.size(); ++l) {
    if (from[l].in > 65536 || from[l].out > 65536) return {};
    field.layers[l] = {from[l].weight,           from[l].bias,
                       int(from[l].in),          int(from[l].out),
                       int(from[l].time_column), 0};
  }
  return field;
}

// Without waiting for the device, which a copy from other memory would do; torch's cache of pinned
// memory knows when the copy is done.
inline at::Tensor upload(const std::vector<double>& numbers, at::Device device) {
  const auto pinned = at::TensorOptions().dtype(at::kDouble).pinned_memory(true);
  const at::Tensor out = at::empty({int64_t(numbers.size())}, pinned);
  std::copy(numbers.begin(), numbers.end(), out.mutable_data_ptr<double>());
  return out.to(device, at::kDouble, /*non_blocking=*/true);
}

// What tasks of solves and of backward passes share; `layers` must outlive the task.
template <class T>
void describe(MlpTask<T>& task, MlpKind kind, const std::vector<LayerTensors>& layers,
              Activation activation, const Tableau& tableau,
              const std::optional<StiffnessPair>& pair, const at::Tensor& state) {
  const int64_t dim = state.size(-1);
  const auto field = device_field<T>(layers, dim, activation);
  const auto method = device_tableau(tableau, pair);
  MlpDevice device{};
  check_launch(mlp_device(state.device().index(), &device));
  // As torch's own products: fewer bits of float32 are for those who ask for them. Not
  // allowTF32CuBLAS, which throws where the setting was made by torch.backends' fp32_precision.
  const auto precision =
      at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL);
  device.tensor = device.tensor && (sizeof(T) == 8 || precision == at::Float32Precision::TF32);
  TORCH_CHECK_VALUE(field && method, "layers or stages are more than a GPU's solve takes");
  task.field = *field;
  task.tableau = *method;
  task.batch = state.numel() / dim;
  TORCH_CHECK_VALUE(mlp_plan<T>(kind, task.field, task.tableau, task.batch, device, task.plan),
                    "states and derivatives do not fit into the shared memory of this GPU");
}

// The weights for a task that reads them from device memory: to be held until its last launch.
template <class T>
at::Tensor pack_weights(MlpTask<T>& task, const at::Tensor& like, void* cuda_stream) {
  if (!task.plan.global_weights) return {};
  const at::Tensor packed = at::empty({task.plan.weights}, like.options());
  check_launch(mlp_pack_cuda(task.field, packed.mutable_data_ptr<T>(), cuda_stream));
  task.packed = packed.const_data_ptr<T>();
  return packed;
}

// What all kinds of solves are told.
template <class T>
MlpTask<T> make_task(MlpKind kind, const std::vector<LayerTensors>& layers, Activation activation,
                     const Tableau& tableau, const std::optional<StiffnessPair>& pair,
                     const at::Tensor& y0, const at::Tensor& ys) {
  MlpTask<T> task{};
  describe(task, kind, layers, activation, tableau, pair, y0);
  task.output_count = ys.size(0);
  task.y0 = y0.const_data_ptr<T>();
  task.ys = ys.mutable_data_ptr<T>();
  return task;
}

}  // namespace fastnode
