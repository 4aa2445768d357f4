// The adaptive step as a CUDA graph can hold it: everything that changes from step to step, times,
// sizes and decisions, is in memory of the device. fastnode.engines.cuda_graph.engine calls the
// pieces in order, with the vector field in between, and captures them.
#pragma once

#include <optional>

#include "driver/adaptive.h"
#include "step_control/rk_control.h"

namespace fastnode {

class GraphStep {
 public:
  // The state's parts, one for a lone tensor, and their tolerances.
  struct Parts {
    std::vector<int64_t> sizes;
    std::vector<double> rtol, atol;
  };
  struct Limits {
    int64_t output_count;   // the start included
    int64_t max_num_steps;  // from one output to the next, or for all together
    bool all_together;
    int64_t capacity;  // steps whose records fit; then the host has to provide more
    bool keeps_starts;
  };

  // `y` is the memory in which the state lies from step to step.
  GraphStep(at::Tensor y, std::shared_ptr<const Tableau> tableau, Controller controller,
            Parts parts, Limits limits, std::optional<StiffnessPair> stiffness);

  // What `memory` is to hold where a solve from times[0] begins, on the host; `h` is the size of
  // its first step, zero if try_first and choose_first find it.
  at::Tensor image(double h, double direction, const std::vector<double>& times) const;

  // The state at the end of a trial step, which ends at the time in times[1], and what follows from
  // its derivative f1.
  at::Tensor try_first();
  void choose_first(const at::Tensor& f1);
  // Plans the first attempt, or the next one once there is memory for records again.
  void begin();

  // State at which stage i is evaluated, at the time in times[i]; stages behind the method's own
  // are its further ones.
  at::Tensor stage(const StageDerivatives& k, size_t i) const;
  // State at the end of the step by a method whose last stage is not there.
  at::Tensor solution(const StageDerivatives& k) const;
  // Decides over a step to y1 and plans the next one.
  void conclude(const StageDerivatives& k, const at::Tensor& y1);
  // Carries out what was decided: outputs, records, state and derivative.
  void commit(const StageDerivatives& k, const at::Tensor& y1);

  // For a step that was planned elsewhere: numbers [3] on the device are its ends, and whether
  // its first stage is the solve's first and not the last one of the step before.
  void place(const at::Tensor& numbers);
  // h sum_j w_j x_j, with h of the step as it was planned last.
  at::Tensor increment(const StageDerivatives& x, const std::vector<double>& weights) const;

  // Whether outputs inside of steps are possible, so that dense output is needed.
  bool inside() const { return limits_.output_count > 2; }
  // The device's memory: of the decisions, in which `running` says whether there is more to do; the
  // derivative at y; times of the stages; outputs [output_count, ...]; records [capacity].
  at::Tensor memory, y, f, times, outputs, ends, errors, stiffness, starts;

 private:
  Control* control() const { return static_cast<Control*>(memory.mutable_data_ptr()); }
  Span span() const;
  int64_t parts() const { return int64_t(parts_.sizes.size()); }
  size_t stages() const { return size_t(times.numel()); }
  at::Tensor combine(const at::Tensor& from, const StageDerivatives& k,
                     const Weights& weights) const;
  // Norms of each part of sum_j w_j k_j into `out`, times the size of the step if `of_step`.
  void measure(const at::Tensor& y1, const StageDerivatives& k, const Weights& weights,
               bool of_step, const at::Tensor& out) const;

  std::shared_ptr<const Tableau> tableau_;
  Controller controller_;
  Parts parts_;
  Limits limits_;
  std::optional<StiffnessPair> stiffness_pair_;
  at::Tensor norms_, partial_, zero_;
};

}  // namespace fastnode
