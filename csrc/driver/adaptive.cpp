#include "driver/adaptive.h"

#include <c10/core/GradMode.h>
#include <torch/csrc/utils/pybind.h>

#include <cmath>

namespace fastnode {
namespace {

void tell(const py::object& callback, double t, const at::Tensor& y, double h) {
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
      t_(t),
      end_(end),
      y_(y.contiguous()),
      k_(tableau_->stages.size()) {
  (*field_)(t_, y_, 0, f_);
  h_ = controller_.clip(first_step ? *first_step : initial_step());
}

// fastnode.controllers.initial_step, which gives the source.
double AdaptiveStepper::initial_step() {
  const c10::NoGradGuard no_grad;
  const at::Tensor y = y_.tensor().detach(), f = f_.detach();
  const double one = 1, difference[] = {1, -1};
  const double d0 = norm_(y, y, {y}, {0}, &one), d1 = norm_(y, y, {f}, {0}, &one);
  if (!std::isfinite(d0) || !std::isfinite(d1)) {
    py::module_::import("fastnode.errors").attr("not_finite_at_start")(t_, wrap(y), wrap(f));
  }
  double h0 = d0 < 1e-5 || d1 < 1e-5 ? 1e-6 : 0.01 * d0 / d1;
  h0 = std::min(h0, std::abs(end_ - t_));
  const double signed_h = std::copysign(h0, end_ - t_);
  Handle trial;
  at::Tensor f1;
  arithmetic_.combine(y, {f}, {0}, &signed_h, trial);
  (*field_)(t_ + signed_h, trial, 0, f1);
  const double d2 = norm_(y, y, {f1, f}, {0, 1}, difference) / h0;
  if (!std::isfinite(d2)) return h0;
  const double h1 = d1 <= 1e-15 && d2 <= 1e-15
                        ? std::max(1e-6, h0 * 1e-3)
                        : std::pow(0.01 / std::max(d1, d2), 1.0 / controller_.order);
  return std::min(100 * h0, h1);
}

double AdaptiveStepper::norm_of(const at::Tensor& y0, const at::Tensor& y1, const Weights& weights,
                                double h) {
  std::vector<double> c(weights.values);
  for (double& each : c) each *= h;
  return norm_(y0, y1, k_, weights.stages, c.data());
}

void AdaptiveStepper::check_progress() const {
  const double signed_h = h_ * field_->direction();
  if (attempts < max_num_steps_ && t_ + signed_h != t_ && !stuck_) return;
  py::list slopes;
  for (const at::Tensor& k : k_) {
    if (k.defined()) slopes.append(wrap(k));
  }
  py::module_::import("fastnode.errors")
      .attr("cannot_continue")(t_, signed_h, attempts, max_num_steps_, ratio_, slopes);
}

void AdaptiveStepper::advance() {
  while (true) {
    check_progress();
    ++attempts;
    const double limit = stops_.empty() ? end_ : stops_.back().time;
    const double room = std::abs(limit - t_);
    const double taken = std::min(h_, room);
    const double t1 = h_ < room ? t_ + h_ * field_->direction() : limit;
    const double h = t1 - t_;
    tell(callbacks_.step, t_, y_.tensor(), h);

    k_.resize(tableau_->stages.size());
    k_[0] = f_;
    take_stages(*field_, *tableau_, arithmetic_, t_, t1, y_.tensor(), k_, stage_, true);
    if (!tableau_->fsal) arithmetic_.combine(y_.tensor(), k_, tableau_->solution, h, stage_);
    ratio_ = norm_of(y_.tensor(), stage_.tensor(), tableau_->error, h);
    const double following = controller_.next_step(taken, ratio_, before_, earlier_);
    if (!controller_.accepts(taken, ratio_)) {
      tell(callbacks_.reject, t_, y_.tensor(), h);
      ++rejected;
      stuck_ = following >= taken;
      h_ = following;
      continue;
    }
    tell(callbacks_.accept, t_, y_.tensor(), h);
    earlier_ = before_;
    before_ = accepted_ratio_ = ratio_;
    stuck_ = false;
    // A step cut short says little of what the next one may be.
    h_ = taken < h_ ? std::max(following, h_) : following;
    t_before_ = t_;
    t_ = t1;
    std::swap(y_before_, y_);
    std::swap(y_, stage_);
    f_ = k_.back();
    if (recording_) keep_record();
    if (!stops_.empty() && (t_ - stops_.back().time) * field_->direction() >= 0) {
      if (stops_.back().jump) (*field_)(t_, y_, 1, f_);
      stops_.pop_back();
    }
    return;
  }
}

void AdaptiveStepper::keep_record() {
  ends.push_back(t_);
  errors.push_back(accepted_ratio_);
  if (!stiffness_weights_) return;
  const double slopes = rms(k_, stiffness_weights_->slopes);
  // The states differ by h times this: the size of the step cancels.
  const double states = rms(k_, stiffness_weights_->states);
  stiffness.push_back(slopes == 0 ? 0 : slopes / states / stiffness_weights_->stability);
}

Step AdaptiveStepper::last() const {
  return {field_, tableau_, t_before_, t_, y_before_.tensor(), y_.tensor(), k_, accepted_ratio_};
}

at::Tensor AdaptiveStepper::integrate(const std::vector<double>& times, bool all_together) {
  Outputs& outputs = outputs_.emplace(y_.tensor(), int64_t(times.size()));
  outputs.add(y_.tensor());
  const std::vector<int> stages = dense_stages(*tableau_);
  const double direction = field_->direction();
  for (size_t i = 1; i < times.size();) {
    if (!all_together) attempts = 0;
    while ((t_ - times[i]) * direction < 0) advance();
    std::vector<double> c;
    for (; i < times.size() && (t_ - times[i]) * direction > 0; ++i) {
      add_dense_weights(*tableau_, t_before_, t_, times[i], c);
    }
    if (!c.empty()) {
      take_further_stages(*field_, *tableau_, arithmetic_, t_before_, t_, y_before_.tensor(), k_);
      outputs.add(arithmetic_, y_before_.tensor(), k_, stages, c);
    }
    if (i < times.size() && times[i] == t_) {
      outputs.add(y_.tensor());
      ++i;
    }
  }
  return outputs.finish();
}

}  // namespace fastnode
