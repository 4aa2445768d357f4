// The discrete adjoint of a solve of solve_joint.h.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "mlp/cpu/solve_joint.h"

namespace fastnode {

// The steps that a solve took and what it kept of them.
template <class T>
struct MlpPath {
  std::shared_ptr<const Tableau> tableau;
  std::vector<double> times, edges;
  bool adaptive = true, perturb = false;
  const T* kept = nullptr;  // see Kept; where it is null, states are recomputed from y0
  const T* y0 = nullptr;
  const Tape* tape = nullptr;  // of the first steps, if any
  int64_t slots = 0;           // states of its tile that a thread keeps then, beside the first
  // Local errors in units of the tolerances, one for each step; used where they have a gradient.
  const double* errors = nullptr;
  double rtol = 0, atol = 0;
  bool constant_k1 = false;  // the initial derivative is a constant

  double direction() const { return times.back() >= times.front() ? 1.0 : -1.0; }
  int64_t steps() const { return int64_t(edges.size()) - 1; }
  // Those that are used, the first included.
  int64_t slot_count() const { return kept ? 0 : 1 + std::min(slots, steps() - 1); }
};

// Gradients of what a solve returned; null where there are none.
template <class T>
struct MlpUpstream {
  const T* ys;           // [times, batch, dim]
  const double* errors;  // [steps]
};

// Where gradients go; null where they are not wanted.
template <class T>
struct MlpGradients {
  T* y0;  // [batch, dim], always
  // One for each thread, [parameter_numbers()]; the sum is in the first.
  std::vector<std::vector<T>>* parameters;
  // For each time the sum of upstream times the solution's derivative there.
  double* rates;
};

// `field` is made with gradients. Whether it came to its end, and was not interrupted.
template <class T>
[[nodiscard]] bool mlp_gradient(const Field<T>& field, int64_t batch, const MlpPath<T>& path,
                                const MlpUpstream<T>& upstream, const MlpGradients<T>& gradients,
                                int threads, const Parallel& parallel);

}  // namespace fastnode
