// A Python vector field over the packed state.
#pragma once

#include "driver/handle.h"

namespace fastnode {

// Whether a field's result is a tensor of this shape, of the dtype and on the device of `like`.
bool plainly_right(PyObject* result, const at::Tensor& like, at::IntArrayRef shape);
// Whether something else may refer to the memory of such a result: a tensor, or a library that
// torch took it from.
bool kept_elsewhere(PyObject* result);
// A result that no later call of the field can change. With gradients, tensors that are kept
// elsewhere are mostly saved for them: those alone are copied that somebody wrote into, as a field
// does that returns a buffer of its own.
at::Tensor own(const at::Tensor& result, bool kept_elsewhere);

class Field {
 public:
  // `field` is a fastnode.problem.ivp.VectorField: it says how results that are not plainly right
  // are converted or refused.
  Field(py::object field, const at::Tensor& y0);

  // dy/dt at (t, y) into k, whose memory is used again where it is ours; side -1 or 1 moves t to
  // the next number before or after it in the direction of time. The GIL must be held.
  void operator()(double t, Handle& y, int side, at::Tensor& k);

  // Releases a stage derivative that is about to be recomputed, so that the field's result may get
  // its memory, which is mapped and perhaps cached. Packed derivatives are overwritten instead.
  void release(at::Tensor& k) const {
    if (!layout_.is_tuple) k.reset();
  }

  double direction() const { return direction_; }
  const Layout& layout() const { return layout_; }
  int64_t evaluations() const { return evaluations_; }

 private:
  PyObject* time(double t, int side);
  void pack(PyObject* results, at::Tensor& k) const;

  py::object field_, func_;
  std::vector<py::object> extra_;
  Layout layout_;
  at::Tensor like_, time_like_;
  double direction_;
  Handle time_;
  int64_t evaluations_ = 0;
};

}  // namespace fastnode
