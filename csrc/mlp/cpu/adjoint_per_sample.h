// The discrete adjoint of a solve of solve_per_sample.h.
#pragma once

#include <memory>
#include <vector>

#include "mlp/cpu/solve_joint.h"

namespace fastnode {

// The steps that a solve took and what it kept of them: those of the first sample, then those of
// the second, and so on.
template <class T>
struct SamplePath {
  std::shared_ptr<const Tableau> tableau;
  int64_t batch, outputs;
  const double *times, *direction;  // see SampleControl
  const int64_t* accepted;          // [batch]: steps of each sample
  const double* t1;                 // [steps]: where they end
  const T* kept;                    // [steps, 2, dim], see MlpSamples::kept
};

// of_ys [outputs, batch, dim] into gy0 [batch, dim] and the parameters' gradients, one part for
// each thread with the sum in the first (see MlpGradients), where they are wanted. Steps keep their
// sizes. `field` is made with gradients. Whether it came to its end, and was not interrupted.
template <class T>
[[nodiscard]] bool sample_gradient(const Field<T>& field, const SamplePath<T>& path, const T* of_ys,
                                   T* gy0, std::vector<std::vector<T>>* parameters, int threads,
                                   const Parallel& parallel);

}  // namespace fastnode
