// The loop over a given grid of steps: fastnode.engines.reference.fixed, step for step the same.
#pragma once

#include "driver/solve_loop.h"

namespace fastnode {

// The steps of one solve by a method of fixed steps.
class FixedSteps {
 public:
  // A step that was taken from y: the state at its end is y + sum_j rise.values_j
  // k[rise.stages_j], k[0] is the derivative at its beginning, and the last of k is free for the
  // derivative at its end. All of it stays until the next step is taken.
  struct Taken {
    StageDerivatives& k;
    const Weights& rise;
  };

  virtual ~FixedSteps() = default;
  virtual Taken take(Field& field, double t, double t1, Handle& y) = 0;
};

class RungeKuttaSteps : public FixedSteps {
 public:
  // `perturb` evaluates the field just after the beginning and just before the end of a step.
  RungeKuttaSteps(const Tableau& tableau, const at::Tensor& like, bool perturb);

  Taken take(Field& field, double t, double t1, Handle& y) override;
  // The same where the derivative f at the beginning is known.
  Taken take_from(const at::Tensor& f, Field& field, double t, double t1, const Handle& y);

 private:
  Taken take_rest(Field& field, double t, double t1, const Handle& y);

  const Tableau& tableau_;
  const Arithmetic arithmetic_;
  const bool perturb_;
  StageDerivatives k_;
  Weights rise_;
  Handle stage_;
};

// Steps along `grid`; the solution [T, ...] at `times`, which lie within it. `on_step` is a Python
// function of (t, packed state, signed step), or None.
at::Tensor integrate_fixed(Field& field, FixedSteps& steps, const at::Tensor& y,
                           const std::vector<double>& times, const std::vector<double>& grid,
                           bool cubic, const py::object& on_step);

}  // namespace fastnode
