// A Python vector field over a batch of samples: func(t [b], y [b, ...], *args).
#pragma once

#include "driver/handle.h"

namespace fastnode {

// Thrown where the field returns a result that is part of an autograd graph.
struct NeedsGraph {};

class SampleField {
 public:
  // `problem` is a fastnode.problem.batch.SampleProblem whose state is one tensor on the CPU.
  SampleField(py::object problem, const at::Tensor& y0);

  // dy/dt at (t, y) into k; with `before`, the directions of time, at the last number before each
  // t. The GIL must be held.
  void operator()(const std::vector<double>& t, const std::vector<double>* before, Handle& y,
                  at::Tensor& k);
  // Keeps the arguments of these samples alone.
  void take(const at::Tensor& rows);

 private:
  PyObject* times(const std::vector<double>& t, const std::vector<double>* before);

  py::object problem_, field_, func_;
  py::tuple args_;
  at::Tensor like_, time_like_;
  Handle time_;
};

}  // namespace fastnode
