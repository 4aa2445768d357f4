#include "driver/adaptive.h"

#include <ATen/ops/stack.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/utils/pybind.h>

#include <cmath>

#include "driver/python_calls.h"
#include "step_control/stiffness.h"

namespace fastnode {
namespace {

void notify(const py::object& callback, double t, const at::Tensor& y, double h) {
  if (!callback.is_none()) callback(t, wrap(y), h);
}

}  // namespace

AdaptiveStepper::AdaptiveStepper(py::object field, std::shared_ptr<const Tableau> tableau, double t,
                                 at::Tensor y, double end, Controller controller, py::object norm,
                                 std::optional<double> first_step, int64_t max_num_steps,
                                 std::vector<Stop> stops, Callbacks callbacks)
    : field_(std::make_shared<Field>(field, y)),
      tableau_(std::move(tableau)),
      arithmetic_(y),
      norm_(norm, y, field_->layout()),
      controller_(controller),
      max_num_steps_(max_num_steps),
      stops_(stops.rbegin(), stops.rend()),
      callbacks_(std::move(callbacks)),
      end_(end),
      y_(y.contiguous()),
      k_(tableau_->stages.size()) {
  controller_.resolution = resolution_of(y.scalar_type());
  course_.t = t;
  course_.direction = field_->direction();
  (*field_)(t, y_, 0, f_);
  course_.h = controller_.clip(first_step ? *first_step : initial_step());
}

double AdaptiveStepper::initial_step() {
  const c10::NoGradGuard no_grad;
  const at::Tensor y = y_.tensor().detach(), f = f_.detach();
  const double t = course_.t, one = 1, difference[] = {1, -1};
  const double d0 = norm_(y, y, {y}, {0}, &one), d1 = norm_(y, y, {f}, {0}, &one);
  if (!std::isfinite(d0) || !std::isfinite(d1)) {
    python_calls().not_finite_at_start(t, wrap(y), wrap(f));
  }
  const double h0 = Controller::trial_step(d0, d1, std::abs(end_ - t));
  const double signed_h = std::copysign(h0, end_ - t);
  Handle trial;
  at::Tensor f1;
  arithmetic_.combine(y, {f}, {0}, &signed_h, trial);
  (*field_)(t + signed_h, trial, 0, f1);
  const double d2 = norm_(y, y, {f1, f}, {0, 1}, difference);
  return with_power([&](auto power) { return controller_.first_step(h0, d1, d2, power); });
}

double AdaptiveStepper::norm_of(const at::Tensor& y0, const at::Tensor& y1, const Weights& weights,
                                double h) {
  std::vector<double> c(weights.values);
  for (double& each : c) each *= h;
  return norm_(y0, y1, k_, weights.stages, c.data());
}

void AdaptiveStepper::check_progress() const {
  if (course_.attempts < max_num_steps_ && !blocked(course_)) return;
  py::list derivatives;
  for (const at::Tensor& k : k_) {
    if (k.defined()) derivatives.append(wrap(k));
  }
  python_calls().cannot_continue(course_.t, course_.h * course_.direction, course_.attempts,
                                 max_num_steps_, course_.ratio, derivatives);
}

void AdaptiveStepper::advance() {
  while (true) {
    check_progress();
    plan(course_, stops_.empty() ? end_ : stops_.back().time);
    const double t = course_.t, t1 = course_.t1, h = course_.step;
    notify(callbacks_.step, t, y_.tensor(), h);

    k_.resize(tableau_->stages.size());
    k_[0] = f_;
    take_stages(*field_, *tableau_, arithmetic_, t, t1, y_.tensor(), k_, stage_, true);
    if (!tableau_->fsal) arithmetic_.combine(y_.tensor(), k_, tableau_->solution, h, stage_);
    const double ratio = norm_of(y_.tensor(), stage_.tensor(), tableau_->error, h);
    const bool accepted = controller_.accepts(course_.taken, ratio);
    notify(accepted ? callbacks_.accept : callbacks_.reject, t, y_.tensor(), h);
    with_power([&](auto power) { return settle(course_, controller_, ratio, power); });
    if (!accepted) continue;
    std::swap(y_before_, y_);
    std::swap(y_, stage_);
    f_ = k_.back();
    if (recording_) keep_record();
    if (!stops_.empty() && (t1 - stops_.back().time) * field_->direction() >= 0) {
      if (stops_.back().jump) (*field_)(t1, y_, 1, f_);
      stops_.pop_back();
    }
    return;
  }
}

void AdaptiveStepper::keep_record() {
  ends.push_back(course_.t);
  errors.push_back(course_.before);
  if (!stiffness_pair_) return;
  // The states differ by h times the second norm: the size of the step cancels.
  const auto& [derivatives, states, stability] = *stiffness_pair_;
  if (!y_.tensor().is_cpu()) {
    stiffness_norms_.push_back(rms_on_gpu(k_, derivatives));
    stiffness_norms_.push_back(rms_on_gpu(k_, states));
  } else {
    stiffness_.push_back(stiffness_of(rms(k_, derivatives), rms(k_, states), stability));
  }
}

std::vector<double> AdaptiveStepper::stiffness() const {
  std::vector<double> all = stiffness_;
  if (stiffness_norms_.empty()) return all;
  const at::Tensor norms = at::stack(stiffness_norms_).to(at::kCPU, at::kDouble);
  const double* values = norms.const_data_ptr<double>();
  for (int64_t i = 0; i < norms.numel(); i += 2) {
    all.push_back(stiffness_of(values[i], values[i + 1], stiffness_pair_->stability));
  }
  return all;
}

Step AdaptiveStepper::last() const {
  return {field_,      tableau_, course_.t_before, course_.t, y_before_.tensor(),
          y_.tensor(), k_,       course_.before};
}

at::Tensor AdaptiveStepper::integrate(const std::vector<double>& times, bool all_together) {
  Outputs& outputs = outputs_.emplace(y_.tensor(), int64_t(times.size()));
  outputs.add(y_.tensor());
  const std::vector<int> stages = dense_stages(*tableau_);
  const double direction = field_->direction(), &t = course_.t, &t0 = course_.t_before;
  for (size_t i = 1; i < times.size();) {
    if (!all_together) course_.attempts = 0;
    while ((t - times[i]) * direction < 0) advance();
    std::vector<double> c;
    for (; i < times.size() && (t - times[i]) * direction > 0; ++i) {
      add_dense_weights(*tableau_, t0, t, times[i], c);
    }
    if (!c.empty()) {
      take_further_stages(*field_, *tableau_, arithmetic_, t0, t, y_before_.tensor(), k_);
      outputs.add(arithmetic_, y_before_.tensor(), k_, stages, c);
    }
    if (i < times.size() && times[i] == t) {
      outputs.add(y_.tensor());
      ++i;
    }
  }
  return outputs.finish();
}

}  // namespace fastnode
