#include "driver/handle.h"

#include <torch/csrc/autograd/python_variable.h>

#include "ops/result_pool.h"

namespace fastnode {

py::object wrap(const at::Tensor& tensor) {
  PyObject* object = THPVariable_Wrap(tensor);
  if (object == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

std::vector<at::Tensor> unpack(const at::Tensor& packed, const Layout& layout) {
  std::vector<at::Tensor> parts;
  int64_t offset = 0;
  for (size_t i = 0; i < layout.shapes.size(); ++i) {
    parts.push_back(packed.narrow(-1, offset, layout.sizes[i]).view(layout.shapes[i]));
    offset += layout.sizes[i];
  }
  return parts;
}

const at::Tensor& Handle::writable(const at::Tensor& like) {
  if (kept_elsewhere() || tensor_.sizes() != like.sizes() ||
      tensor_.scalar_type() != like.scalar_type()) {
    argument_ = py::object();
    tensor_ = empty_result(like);
    ours_ = true;
    tensor_uses_ = storage_uses_ = 1;
  }
  return tensor_;
}

PyObject* Handle::argument(const Layout& layout) {
  if (argument_) return argument_.ptr();
  if (!layout.is_tuple) {
    argument_ = wrap(tensor_);
  } else {
    const std::vector<at::Tensor> views = unpack(tensor_, layout);
    py::tuple all(views.size());
    for (size_t i = 0; i < views.size(); ++i) all[i] = wrap(views[i]);
    argument_ = std::move(all);
  }
  if (ours_) {
    tensor_uses_ = tensor_.use_count();
    storage_uses_ = tensor_.storage().use_count();
    if (layout.is_tuple && !layout.shapes.empty()) {
      view_uses_ = THPVariable_Unpack(PyTuple_GET_ITEM(argument_.ptr(), 0)).use_count();
    }
  }
  return argument_.ptr();
}

bool Handle::kept_elsewhere() const {
  if (!ours_ || !tensor_.defined() || tensor_.requires_grad()) return true;
  if (tensor_.use_count() != tensor_uses_ || tensor_.storage().use_count() != storage_uses_) {
    return true;
  }
  if (!argument_) return false;
  if (Py_REFCNT(argument_.ptr()) != 1) return true;
  if (!PyTuple_Check(argument_.ptr())) return false;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(argument_.ptr()); ++i) {
    PyObject* view = PyTuple_GET_ITEM(argument_.ptr(), i);
    const at::Tensor& tensor = THPVariable_Unpack(view);
    if (Py_REFCNT(view) != 1 || tensor.use_count() != view_uses_ || tensor.requires_grad()) {
      return true;
    }
  }
  return false;
}

}  // namespace fastnode
