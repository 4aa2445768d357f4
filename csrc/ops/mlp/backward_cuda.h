// Gradients of solves of perceptrons on a GPU.
#pragma once

#include <memory>

#include "mlp/cpu/solve_joint.h"
#include "ops/mlp/layers.h"

namespace fastnode {

// The steps that a solve took, and what it kept of them; tensors on the GPU, contiguous.
struct DevicePath {
  std::shared_ptr<const Tableau> tableau;
  bool adaptive, perturb;
  at::Tensor times;  // float64 [outputs], by sample [batch, outputs]
  at::Tensor kept;   // [most steps, parts, batch, ..., dim]
  // Float64: where steps begin and end, or by sample where they end, those of sample b from
  // offsets[b] to offsets[b + 1] (int64); numbers of `directions` [batch].
  at::Tensor edges, offsets, directions;
};

// Gradients of y0, of the times (float64) and of weights and biases in the order of the layers, or
// nothing where they are not wanted.
struct DeviceGradients {
  at::Tensor y0, times;
  std::vector<at::Tensor> parameters;
};

// From of_ys [outputs, batch, ..., dim]; `layers` are contiguous. With per-sample stepping
// the times have no gradients.
DeviceGradients mlp_gradients_on_gpu(const std::vector<LayerTensors>& layers, Activation activation,
                                     const DevicePath& path, const at::Tensor& of_ys,
                                     bool of_parameters, bool of_times);

}  // namespace fastnode
