// A tensor of ours that Python sees for the length of a call and that we then write over.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <vector>

namespace fastnode {

namespace py = pybind11;

// How the caller's tuple lies in the packed state; one lone tensor has no parts.
struct Layout {
  bool is_tuple = false;
  std::vector<std::vector<int64_t>> shapes;
  std::vector<int64_t> sizes;
};

// Memory is overwritten only if nothing else refers to it: a vector field may return its argument,
// keep it, or save it for a gradient. Then the next write goes to fresh memory. The GIL must be
// held.
class Handle {
 public:
  Handle() = default;
  // Somebody else's tensor, which is never written to.
  explicit Handle(at::Tensor tensor) : tensor_(std::move(tensor)), ours_(false) {}

  const at::Tensor& tensor() const { return tensor_; }

  // Contiguous memory of like's shape and dtype, its old content lost.
  const at::Tensor& writable(const at::Tensor& like);

  // The tensor as a vector field takes it: itself, or a tuple of views. Borrowed.
  PyObject* argument(const Layout& layout);

 private:
  bool kept_elsewhere() const;

  at::Tensor tensor_;
  bool ours_ = true;
  py::object argument_;
  // References that tensor, memory and views have when nothing else refers to them.
  size_t tensor_uses_ = 1, storage_uses_ = 1, view_uses_ = 1;
};

py::object wrap(const at::Tensor& tensor);

// `packed` as the caller's tuple.
std::vector<at::Tensor> unpack(const at::Tensor& packed, const Layout& layout);

}  // namespace fastnode
