// What the bindings of whole solves ask of their arguments.
#pragma once

#include <ATen/core/grad_mode.h>

#include <vector>

#include "ops/mlp/layers.h"

namespace fastnode {

inline bool wants_gradient(const at::Tensor& y0, const at::Tensor& t, const FieldTensors& of) {
  if (!at::GradMode::is_enabled()) return false;
  if (y0.requires_grad() || t.requires_grad()) return true;
  for (const LayerTensors& each : of.layers) {
    if (each.weight.requires_grad() || (each.bias.defined() && each.bias.requires_grad())) {
      return true;
    }
  }
  for (const at::Tensor& each : of.inputs) {
    if (each.requires_grad()) return true;
  }
  return false;
}

// Of times on a GPU a copy.
inline at::Tensor times_on_cpu(const at::Tensor& y0, const at::Tensor& t) {
  return y0.is_cuda() && t.is_cuda() ? t.cpu() : t;
}

}  // namespace fastnode
