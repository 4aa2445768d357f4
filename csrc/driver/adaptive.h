// The adaptive loop: fastnode.engines.reference.adaptive.AdaptiveStepper, step for step the same.
#pragma once

#include "driver/solve_loop.h"
#include "step_control/rk_control.h"

namespace fastnode {

struct Stop {
  double time;
  bool jump;
};

// Python functions of (t, packed state, signed step); or None.
struct Callbacks {
  py::object step, accept, reject;
};

class AdaptiveStepper {
 public:
  AdaptiveStepper(py::object field, std::shared_ptr<const Tableau> tableau, double t, at::Tensor y,
                  double end, Controller controller, py::object norm,
                  std::optional<double> first_step, int64_t max_num_steps, std::vector<Stop> stops,
                  Callbacks callbacks);

  // Tries steps until one is accepted.
  void advance();
  // The step that was accepted last.
  Step last() const;
  // The solution [T, ...] at `times`, of which it stands at the first; max_num_steps holds from one
  // of them to the next, or for all together.
  at::Tensor integrate(const std::vector<double>& times, bool all_together);
  // What of it is there, also when it did not come to its end.
  at::Tensor outputs() const { return outputs_ ? outputs_->finish() : y_.tensor().unsqueeze(0); }
  // From now on keeps of each accepted step its end, its error and, given weights, its stiffness.
  void record(std::optional<StiffnessPair> pair) {
    recording_ = true;
    stiffness_pair_ = std::move(pair);
  }

  double t() const { return course_.t; }
  double h() const { return course_.h; }
  int64_t evaluations() const { return field_->evaluations(); }
  int64_t rejected() const { return course_.rejected; }

  std::vector<double> ends, errors;
  // Of each step recorded; on a GPU this waits for it.
  std::vector<double> stiffness() const;

 private:
  double initial_step();
  void keep_record();
  double norm_of(const at::Tensor& y0, const at::Tensor& y1, const Weights& weights, double h);
  void check_progress() const;
  // Calls f with the power that decides: on a GPU others may decide about the same steps.
  template <class F>
  auto with_power(F&& f) const {
    return y_.tensor().is_cpu() ? f(LibraryPower()) : f(PortablePower());
  }

  std::shared_ptr<Field> field_;
  std::shared_ptr<const Tableau> tableau_;
  Arithmetic arithmetic_;
  ErrorNorm norm_;
  Controller controller_;
  int64_t max_num_steps_;
  std::vector<Stop> stops_;  // the next one last
  Callbacks callbacks_;

  Course course_;
  double end_;
  Handle y_, y_before_, stage_;
  at::Tensor f_;
  StageDerivatives k_;
  bool recording_ = false;
  std::optional<StiffnessPair> stiffness_pair_;
  std::vector<double> stiffness_;
  // On a GPU two norms a step, which are read in the end.
  std::vector<at::Tensor> stiffness_norms_;
  std::optional<Outputs> outputs_;
};

}  // namespace fastnode
