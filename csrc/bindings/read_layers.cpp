// fastnode._C.read_layers, which fastnode.engines.fused.mlp calls and describes: the same in C++,
// as every solve asks half a dozen modules for half a dozen entries each.
#include <torch/csrc/autograd/python_variable.h>

#include "bindings/bindings.h"

namespace fastnode {
namespace {

namespace py = pybind11;

// The number of fastnode.engines.fused.mlp for a column that stands last.
constexpr int64_t kLast = -2;

py::object attributes(py::handle object) {
  PyObject* const found = PyObject_GenericGetDict(object.ptr(), nullptr);
  if (!found) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(found);
}

// Borrowed; null if there is none.
py::handle entry(py::handle dict, PyObject* key) {
  PyObject* const found = PyDict_GetItemWithError(dict.ptr(), key);
  if (!found && PyErr_Occurred()) throw py::error_already_set();
  return found;
}

// Never given back: Python may end before static objects do.
struct Names {
  PyObject* const hooks[4] = {PyUnicode_InternFromString("_forward_hooks"),
                              PyUnicode_InternFromString("_forward_pre_hooks"),
                              PyUnicode_InternFromString("_backward_hooks"),
                              PyUnicode_InternFromString("_backward_pre_hooks")};
  PyObject* const forward = PyUnicode_InternFromString("forward");
  PyObject* const parameters = PyUnicode_InternFromString("_parameters");
  PyObject* const weight = PyUnicode_InternFromString("weight");
  PyObject* const bias = PyUnicode_InternFromString("bias");
};

bool is_plain_call(py::handle module, const Names& names) {
  const py::object own = attributes(module);
  for (PyObject* const each : names.hooks) {
    const py::handle hooks = entry(own, each);
    if (hooks && PyObject_IsTrue(hooks.ptr()) != 0) return false;
  }
  return !entry(own, names.forward);
}

// What the linear layer `module` holds, (weight, bias, column of the time); None if it is not
// plain.
py::object read_layer(py::handle module, py::handle time, const Names& names) {
  const py::object own = attributes(module);
  const py::handle held = entry(own, names.parameters);
  const py::handle weight = entry(held, names.weight), bias = entry(held, names.bias);
  if (!weight || weight.is_none() || !bias) return py::none();
  int64_t column = py::cast<int64_t>(time);
  if (column == kLast) column = THPVariable_Unpack(weight.ptr()).size(1) - 1;
  return py::make_tuple(weight, bias, column);
}

const Names& the_names() {
  static const Names* const names = new Names();
  return *names;
}

py::object read_layers(const py::list& inside, const py::list& layers) {
  const Names& names = the_names();
  for (const py::handle module : inside) {
    if (!is_plain_call(module, names)) return py::none();
  }
  py::list found;
  for (const py::handle each : layers) {
    const auto layer = py::cast<py::tuple>(each);
    const py::object held = read_layer(layer[0], layer[1], names);
    if (held.is_none()) return held;
    found.append(held);
  }
  return found;
}

// The same of a field and its layers, whose columns a dict gives by their class; None if it does
// not know one.
py::object read_chain(py::handle field, const py::dict& layers, const py::dict& columns) {
  const Names& names = the_names();
  if (!is_plain_call(field, names)) return py::none();
  py::list found;
  for (const auto& [name, module] : layers) {
    const py::handle column = entry(columns, reinterpret_cast<PyObject*>(Py_TYPE(module.ptr())));
    if (!column || !is_plain_call(module, names)) return py::none();
    const py::object held = read_layer(module, column, names);
    if (held.is_none()) return held;
    found.append(held);
  }
  return found;
}

// Whether a number is what a tuple of fastnode.engines.held_values.Place says.
bool is_number(PyObject* expected, int64_t now) { return PyLong_AsLongLong(expected) == now; }

// Whether `holder` still holds under `key` what it held.
bool holds(PyObject* holder, PyObject* key, PyObject* expected) {
  if (PyDict_Check(holder)) {
    if (key == Py_None) return is_number(expected, PyDict_Size(holder));
    return entry(holder, key).ptr() == expected;
  }
  if (PyList_Check(holder)) {
    if (key == Py_None) return is_number(expected, PyList_GET_SIZE(holder));
    const Py_ssize_t index = PyLong_AsSsize_t(key);
    return index < PyList_GET_SIZE(holder) && PyList_GET_ITEM(holder, index) == expected;
  }
  if (PyCell_Check(holder)) return PyCell_GET(holder) == expected;
  if (THPVariable_Check(holder)) {
    return is_number(expected, int64_t(THPVariable_Unpack(holder)._version()));
  }
  const auto now = py::reinterpret_steal<py::object>(PyObject_GetAttr(holder, key));
  if (!now) PyErr_Clear();
  return now.ptr() == expected;
}

bool changed(const py::list& places) {
  for (const py::handle place : places) {
    PyObject* const of = place.ptr();
    if (!holds(PyTuple_GET_ITEM(of, 0), PyTuple_GET_ITEM(of, 1), PyTuple_GET_ITEM(of, 2))) {
      return true;
    }
  }
  return false;
}

}  // namespace

void bind_layers(py::module_& m) {
  m.def("read_layers", &read_layers);
  m.def("read_chain", &read_chain);
  m.def("changed", &changed);
}

}  // namespace fastnode
