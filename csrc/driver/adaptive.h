// The adaptive loop: fastnode.engines.adaptive.AdaptiveStepper, step for step the same.
#pragma once

#include "driver/controller.h"
#include "driver/solve_loop.h"

namespace fastnode {

struct Stop {
  double time;
  bool jump;
};

// Python functions of (t, packed state, signed step); None where there is nothing to tell.
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
  // The solution [T, ...] at `times`, of which it stands at the first.
  at::Tensor integrate(const std::vector<double>& times);

  double t() const { return t_; }
  const at::Tensor& y() const { return y_.tensor(); }
  const at::Tensor& f() const { return f_; }
  double h() const { return h_; }
  int64_t evaluations() const { return field_->evaluations(); }

  int64_t attempts = 0, rejected = 0;

 private:
  double initial_step();
  double norm_of(const at::Tensor& y0, const at::Tensor& y1, const Weights& weights, double h);
  void check_progress() const;

  std::shared_ptr<Field> field_;
  std::shared_ptr<const Tableau> tableau_;
  Arithmetic arithmetic_;
  ErrorNorm norm_;
  Controller controller_;
  int64_t max_num_steps_;
  std::vector<Stop> stops_;  // the next one last
  Callbacks callbacks_;

  double t_, end_, h_ = 0, t_before_ = 0;
  Handle y_, y_before_, stage_;
  at::Tensor f_;
  Slopes k_;
  double before_ = 1, earlier_ = 1, ratio_ = 0, accepted_ratio_ = 0;
  bool stuck_ = false;
};

}  // namespace fastnode
