// Per-sample adaptive stepping: fastnode.engines.reference.per_sample.PerSampleSolve, step for step
// the same, for float and double states on the CPU that need no graph.
#pragma once

#include <memory>
#include <optional>

#include "common/failure.h"
#include "driver/rows.h"
#include "driver/sample_field.h"
#include "step_control/controller.h"

namespace fastnode {

// The weights of an estimate of stiffness, where a method has one (fastnode/control/stiffness.py).
struct StagePair {
  Weights slopes, states;
  double stability;
};

struct SampleOptions {
  std::shared_ptr<const Tableau> tableau;
  Controller controller;
  std::optional<StagePair> pair;
  std::optional<at::Tensor> first_step;  // [B]
  int64_t max_num_steps;
  bool keep_states, keep_slopes, throws;
};

// What the accepted steps of a sample leave behind, in the order they were taken.
struct SampleSteps {
  std::vector<double> t1, error, stiffness;
  std::vector<char> states, slopes;  // [n, D] and [n, stages, D]
};

struct SampleTrace {
  at::Tensor ys;                                         // [T, B, ...]
  std::vector<int64_t> nfe, accepted, rejected, status;  // [B]
  std::vector<SampleSteps> steps;                        // [B]
};

class PerSampleSolve {
 public:
  // ts [B, T], direction, rtol and atol [B] in float64; f0 is the field at y0 [B, ...].
  PerSampleSolve(py::object problem, const at::Tensor& y0, const at::Tensor& f0,
                 const at::Tensor& ts, const at::Tensor& direction, const at::Tensor& rtol,
                 const at::Tensor& atol, SampleOptions options);

  // Throws NeedsGraph if the field's results turn out to be part of a graph.
  SampleTrace run();

 private:
  int64_t rows() const { return int64_t(index_.size()); }
  bool any_running() const;
  void compact();
  void attempt();
  void plan();
  void take_stages();
  void measure();
  void decide(std::vector<char>& accepted, std::vector<char>& stuck);
  void record(int64_t row);
  void interpolate(int64_t row);
  void move(const std::vector<char>& accepted);
  void initial_steps();
  void check_progress(const std::vector<char>& stuck);
  void fail(Failure failure, const std::vector<char>& which);

  void combine(const Weights& weights, const std::vector<double>& h, Handle& out);

  SampleField field_;
  SampleOptions options_;
  SampleTrace trace_;
  int64_t batch_, outputs_, width_, bytes_;  // the last two of a row
  const at::Tensor ts_;
  const at::ScalarType dtype_;

  // One entry for each row of the batch: row r is sample index_[r].
  std::vector<int64_t> index_, pending_, attempts_;
  std::vector<char> running_;
  std::vector<double> t_, end_, h_, direction_, before_, earlier_, rtol_, atol_;
  at::Tensor y_;
  Slopes k_;  // k_[0] is the field at (t, y)
  // Of the step that is tried.
  std::vector<double> t1_, step_, taken_, ratio_, stiffness_, times_, zero_, one_;
  Weights dense_;
  Handle stage_, solution_;
  const Handle* y1_ = nullptr;
};

}  // namespace fastnode
