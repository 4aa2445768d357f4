// The loop over a given grid of steps: fastnode.engines.reference.fixed, step for step the same.
#pragma once

#include "driver/solve_loop.h"

namespace fastnode {

struct FixedOutcome {
  at::Tensor solution;
  int64_t evaluations;
};

// Steps along `grid`; the solution [T, ...] at `times`, which lie within it. `on_step` is a Python
// function of (t, packed state, signed step), or None.
FixedOutcome integrate_fixed(py::object field, const Tableau& tableau, at::Tensor y,
                             const std::vector<double>& times, const std::vector<double>& grid,
                             bool cubic, bool perturb, const py::object& on_step);

}  // namespace fastnode
