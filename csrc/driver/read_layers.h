// Layers of a perceptron as Python hands them over.
#pragma once

#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <tuple>
#include <vector>

#include "ops/mlp_layers.h"

namespace fastnode {

// Weight, bias or None, column of the time or -1.
using LayerTuple = std::tuple<py::object, py::object, int64_t>;

inline bool is_plain(py::handle x) { return THPVariable_CheckExact(x.ptr()); }

// Whether all of them are plain tensors.
inline bool read_layers(const std::vector<LayerTuple>& layers, std::vector<LayerTensors>& out) {
  out.reserve(layers.size());
  for (const auto& [weight, bias, time_column] : layers) {
    if (!is_plain(weight) || !(bias.is_none() || is_plain(bias))) return false;
    out.push_back({THPVariable_Unpack(weight.ptr()),
                   bias.is_none() ? at::Tensor() : THPVariable_Unpack(bias.ptr()), time_column});
  }
  return true;
}

}  // namespace fastnode
