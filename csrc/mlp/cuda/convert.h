// Arguments of the kernels of mlp/cuda/types.h, from those of the solves on the CPU.
#pragma once

#include <algorithm>
#include <optional>

#include "mlp/cpu/solve_joint.h"
#include "mlp/cuda/types.h"

namespace fastnode {

inline void put_weights(const Weights& weights, double* to) {
  for (size_t i = 0; i < weights.stages.size(); ++i) to[weights.stages[i]] = weights.values[i];
}

// None for a method with more stages than the kernels have memory for.
inline std::optional<DeviceTableau> device_tableau(const Tableau& tableau,
                                                   const std::optional<StiffnessPair>& pair) {
  const size_t stages = tableau.stages.size(), all = stages + tableau.further.size();
  if (all > size_t(kMostStages)) return {};
  DeviceTableau out{};
  out.stages = int(stages);
  out.further = int(tableau.further.size());
  out.fsal = tableau.fsal;
  for (size_t i = 0; i < all; ++i) {
    const bool own = i < stages;
    out.fractions[i] = own ? tableau.times[i] : tableau.further_times[i - stages];
    put_weights(own ? tableau.stages[i] : tableau.further[i - stages],
                out.rows + i * (i - (i > 0)) / 2);
  }
  put_weights(tableau.solution, out.solution);
  put_weights(tableau.error, out.error);
  if (pair) {
    put_weights(pair->derivatives, out.derivatives);
    put_weights(pair->states, out.states);
    out.stability = pair->stability;
  }
  for (const Polynomial& each : tableau.dense) {
    if (each.coefficients.size() > size_t(kMaxDegree)) return {};
    out.degree = std::max(out.degree, int(each.coefficients.size()));
    std::copy(each.coefficients.begin(), each.coefficients.end(), out.a[each.stage]);
  }
  return out;
}

// Evaluations of the field for one course.
inline int64_t evaluations(const MlpState& state, const DeviceTableau& tableau, bool given_first) {
  const Course& course = state.control.course;
  return 1 + (state.started && !given_first ? 1 : 0) +
         (course.accepted + course.rejected) * (tableau.stages - 1) +
         state.interpolated * tableau.further;
}

}  // namespace fastnode
