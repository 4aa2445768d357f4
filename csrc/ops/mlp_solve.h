// Whole solves of multilayer perceptrons, for Python and for autograd.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "fused/mlp_solve.h"
#include "ops/mlp_layers.h"

namespace fastnode {

struct MlpOutcome {
  at::Tensor ys;  // [times, *y0.shape]
  MlpTrace trace;
};

// Whether these are tensors that mlp_solve takes: float32 or float64 in the memory of the CPU, the
// sizes of the layers fitting each other and y0's last dimension.
bool mlp_fits(const std::vector<LayerTensors>& layers, const at::Tensor& y0);

// Whether one call is faster than the native engine, which calls torch's layers.
bool mlp_pays(const std::vector<LayerTensors>& layers, const at::Tensor& y0);

// The solution at options.times. Differentiable in y0, in the layers and, if it is given, in `t`,
// which holds the same times.
MlpOutcome mlp_solve(const std::vector<LayerTensors>& layers, Activation activation,
                     const at::Tensor& y0, const std::optional<at::Tensor>& t, MlpOptions options,
                     InstructionSet instructions);

}  // namespace fastnode
