// Layers of a perceptron as Python hands them over: a list of (weight, bias or None, column of the
// time or -1).
#pragma once

#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <vector>

#include "ops/mlp/layers.h"

namespace fastnode {

inline bool is_plain(py::handle x) { return THPVariable_CheckExact(x.ptr()); }

// Whether all of them are plain tensors. Without the casters of pybind11, which show in the time of
// a small solve.
inline bool read_layers(const py::list& layers, std::vector<LayerTensors>& out) {
  out.reserve(layers.size());
  for (const py::handle each : layers) {
    TORCH_CHECK_TYPE(PyTuple_Check(each.ptr()) && PyTuple_GET_SIZE(each.ptr()) == 3,
                     "layers must be tuples of weight, bias and the column of the time");
    const py::handle weight = PyTuple_GET_ITEM(each.ptr(), 0),
                     bias = PyTuple_GET_ITEM(each.ptr(), 1);
    if (!is_plain(weight) || !(bias.is_none() || is_plain(bias))) return false;
    const int64_t column = PyLong_AsLongLong(PyTuple_GET_ITEM(each.ptr(), 2));
    if (column == -1 && PyErr_Occurred()) throw py::error_already_set();
    out.push_back({THPVariable_Unpack(weight.ptr()),
                   bias.is_none() ? at::Tensor() : THPVariable_Unpack(bias.ptr()), column});
  }
  return true;
}

// The field of a solve as Python hands it over: layers, or the tensors of a generated field.
inline bool read_field(const py::list& given, int64_t number, FieldTensors& out) {
  if (number < kFirstGenerated) {
    out.number = number;
    return read_layers(given, out.layers);
  }
  std::vector<at::Tensor> inputs;
  inputs.reserve(given.size());
  for (const py::handle each : given) {
    if (!THPVariable_Check(each.ptr())) return false;
    inputs.push_back(THPVariable_Unpack(each.ptr()));
  }
  out = FieldTensors::from(inputs, {}, number);
  return true;
}

}  // namespace fastnode
