// A whole solve of a multilayer perceptron's field with per-sample stepping: sample for sample the
// loop of fastnode.engines.reference.per_sample.
//
// The samples of a tile try a step at once, each of its own size. The position of one that has
// finished goes to one that waits or, when none is left, to the last of the tile, which shrinks: no
// evaluation is spent on a sample that stands still. A sample's result does not depend on the
// others in its tile, so any thread may take it.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "common/failure.h"
#include "mlp/cpu/solve_joint.h"

namespace fastnode {

// Numbers of each sample are [batch], times [batch, outputs].
struct SampleControl {
  std::shared_ptr<const Tableau> tableau;
  Controller controller{};
  std::optional<StiffnessPair> pair;
  int64_t max_num_steps = 0, outputs = 0;
  const double *times = nullptr, *direction = nullptr, *rtol = nullptr, *atol = nullptr;
  const double* first_step = nullptr;  // or null: chosen at the cost of one evaluation
  bool keep_states = false;            // what gradients need
};

// What the solve of one sample leaves behind.
struct SampleRecord {
  std::vector<double> t1, error, stiffness;  // of the accepted steps
  int64_t evaluations = 0, rejected = 0;
  Failure failure = Failure::kNone;
  // Where it stands and what it is about to try.
  double t = 0, h = 0;
  bool saw_nan = false, saw_infinity = false;
};

template <class T>
class MlpSamples {
 public:
  // `field` must outlive it.
  MlpSamples(const Field<T>& field, int64_t batch, SampleControl control);

  // y0 [batch, dim] into ys [outputs, batch, dim]; what a sample that failed did not reach stays as
  // it is. Whether it came to its end, and was not interrupted.
  [[nodiscard]] bool run(const T* y0, T* ys, int threads, const Parallel& parallel);

  const std::vector<SampleRecord>& records() const { return records_; }
  // Of each sample [steps, 2, dim]: of each accepted step the state and the derivative at its
  // beginning.
  std::vector<std::vector<T>>& kept() { return kept_; }

 private:
  struct Worker;

  const Field<T>* field_;
  const int64_t batch_;
  SampleControl control_;
  std::vector<SampleRecord> records_;
  std::vector<std::vector<T>> kept_;
  std::vector<T> initial_;  // the field at y0, [batch, dim]
  std::atomic<int64_t> begun_{0}, next_{0};
  Interruption interruption_;
};

}  // namespace fastnode
