// Per-sample adaptive stepping: fastnode.engines.reference.per_sample.PerSampleSolve, step for step
// the same, for float and double states on the CPU that need no graph.
#pragma once

#include <memory>
#include <optional>

#include "common/failure.h"
#include "driver/rows.h"
#include "driver/sample_field.h"
#include "step_control/rk_control.h"

namespace fastnode {

struct SampleOptions {
  std::shared_ptr<const Tableau> tableau;
  Controller controller;
  std::optional<StiffnessPair> pair;
  std::optional<at::Tensor> first_step;  // [B]
  int64_t max_num_steps;
  bool keep_states, keep_derivatives, throws;
};

// What the accepted steps of a sample leave behind, in the order they were taken.
struct SampleSteps {
  std::vector<double> t1, error, stiffness;
  std::vector<char> states, derivatives;  // [n, D] and [n, stages, D]
};

struct SampleTrace {
  at::Tensor ys;                                         // [T, B, ...]
  std::vector<int64_t> nfe, accepted, rejected, status;  // [B]
  std::vector<SampleSteps> steps;                        // [B]
};

// Where a sample of the batch stands.
struct SampleCourse {
  int64_t sample;
  double end;
  Course course;
  int64_t next = 1;  // the output to come
  bool running = true;
  bool accepted = false;  // the step that was tried last
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
  int64_t rows() const { return int64_t(samples_.size()); }
  bool any_running() const;
  void compact();
  void attempt();
  void plan();
  void take_stages();
  void measure();
  void decide();
  void record(int64_t row);
  void interpolate(int64_t row);
  void move();
  void initial_steps();
  void check_progress();
  void fail(Failure failure, const std::vector<int64_t>& chosen);

  void combine(const Weights& weights, const std::vector<double>& h, Handle& out);

  SampleField field_;
  SampleOptions options_;
  SampleTrace trace_;
  int64_t batch_, outputs_, width_, bytes_;  // the last two of a row
  const at::Tensor ts_;
  const at::ScalarType dtype_;

  // One entry for each row of the batch that is left.
  std::vector<SampleCourse> samples_;
  std::vector<double> direction_, rtol_, atol_;
  at::Tensor y_;
  StageDerivatives k_;  // k_[0] is the field at (t, y)
  // Of the step that is tried.
  std::vector<double> step_, ratio_, stiffness_, times_, zero_, one_;
  Weights dense_;
  Handle stage_, solution_;
  const Handle* y1_ = nullptr;
};

}  // namespace fastnode
