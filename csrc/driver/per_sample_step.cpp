// A step of every running sample.
#include <cmath>
#include <cstring>
#include <limits>

#include "driver/per_sample.h"
#include "kernels/rk/rk_stage.h"
#include "step_control/dense_output.h"
#include "step_control/stiffness.h"

namespace fastnode {
namespace {

char* bytes_of(const at::Tensor& x) { return static_cast<char*>(x.mutable_data_ptr()); }

void append(std::vector<char>& to, const char* from, int64_t bytes) {
  to.insert(to.end(), from, from + bytes);
}

}  // namespace

void PerSampleSolve::combine(const Weights& weights, const std::vector<double>& h, Handle& out) {
  combine_rows(y_, k_, weights, h, out.writable(y_));
}

void PerSampleSolve::plan() {
  for (auto* each : {&step_, &times_}) each->resize(rows());
  for (int64_t r = 0; r < rows(); ++r) {
    Course& course = samples_[r].course;
    if (samples_[r].running) {
      fastnode::plan(course, samples_[r].end);
    } else {
      rest(course);
    }
    step_[r] = course.step;
  }
}

void PerSampleSolve::take_stages() {
  const Tableau& tableau = *options_.tableau;
  for (size_t i = 1; i < k_.size(); ++i) {
    combine(tableau.stages[i], step_, stage_);
    const double c = tableau.times[i];
    for (int64_t r = 0; r < rows(); ++r) {
      const Course& course = samples_[r].course;
      times_[r] = c == 1 ? course.t1 : course.t + c * course.step;
    }
    field_(times_, c == 1 ? &direction_ : nullptr, stage_, k_[i]);
  }
  y1_ = &stage_;
  if (!tableau.fsal) {
    combine(tableau.solution, step_, solution_);
    y1_ = &solution_;
  }
  for (const SampleCourse& each : samples_) {
    if (each.running) trace_.nfe[each.sample] += int64_t(k_.size()) - 1;
  }
}

void PerSampleSolve::measure() {
  norm_rows(y_, y1_->tensor(), k_, options_.tableau->error, step_, rtol_, atol_, ratio_);
  stiffness_.assign(rows(), std::numeric_limits<double>::quiet_NaN());
  if (!options_.pair) return;
  zero_.assign(rows(), 0.0);
  one_.assign(rows(), 1.0);
  std::vector<double> states;
  norm_rows(y_, y_, k_, options_.pair->derivatives, one_, zero_, one_, stiffness_);
  norm_rows(y_, y_, k_, options_.pair->states, one_, zero_, one_, states);
  for (int64_t r = 0; r < rows(); ++r) {
    stiffness_[r] = stiffness_of(stiffness_[r], states[r], options_.pair->stability);
  }
}

void PerSampleSolve::decide() {
  for (int64_t r = 0; r < rows(); ++r) {
    SampleCourse& each = samples_[r];
    each.accepted =
        each.running && settle(each.course, options_.controller, ratio_[r], LibraryPower());
    if (each.running) ++(each.accepted ? trace_.accepted : trace_.rejected)[each.sample];
  }
}

void PerSampleSolve::record(int64_t row) {
  SampleSteps& steps = trace_.steps[samples_[row].sample];
  steps.t1.push_back(samples_[row].course.t);
  steps.error.push_back(ratio_[row]);
  steps.stiffness.push_back(stiffness_[row]);
  const int64_t offset = row * bytes_;
  if (options_.keep_states) append(steps.states, bytes_of(y1_->tensor()) + offset, bytes_);
  if (options_.keep_derivatives) {
    for (const at::Tensor& each : k_) append(steps.derivatives, bytes_of(each) + offset, bytes_);
  }
}

void PerSampleSolve::interpolate(int64_t row) {
  SampleCourse& at = samples_[row];
  const double* times = ts_.const_data_ptr<double>() + at.sample * outputs_;
  const double t0 = at.course.t_before, t1 = at.course.t;
  const int64_t offset = row * width_;
  for (int64_t& next = at.next; next < outputs_; ++next) {
    const double time = times[next];
    if ((time - t1) * at.course.direction > 0) return;
    char* out = bytes_of(trace_.ys) + (next * batch_ + at.sample) * bytes_;
    if (time == t1) {
      std::memcpy(out, bytes_of(y1_->tensor()) + row * bytes_, bytes_);
      continue;
    }
    // Its memory is kept: an allocation costs more than a narrow row.
    dense_.stages.clear();
    dense_.values.clear();
    for (const Polynomial& each : options_.tableau->dense) {
      dense_.stages.push_back(each.stage);
      dense_.values.push_back(dense_weight(each, t0, t1, time));
    }
    dispatch_real(dtype_, [&]<class T>(T*) {
      rk_stage_range(y_.const_data_ptr<T>() + offset, row_terms<T>(k_, dense_, offset), 0, width_,
                     reinterpret_cast<T*>(out));
    });
  }
}

void PerSampleSolve::move() {
  char *y = bytes_of(y_), *f = bytes_of(k_[0]);
  const char *y1 = bytes_of(y1_->tensor()), *f1 = bytes_of(k_.back());
  for (int64_t r = 0; r < rows();) {
    if (!samples_[r].accepted) {
      ++r;
      continue;
    }
    // Neighbours that were accepted move at once.
    const int64_t first = r;
    for (; r < rows() && samples_[r].accepted; ++r) {
      if (samples_[r].course.t == samples_[r].end) samples_[r].running = false;
    }
    const int64_t offset = first * bytes_, size = (r - first) * bytes_;
    std::memcpy(y + offset, y1 + offset, size);
    std::memcpy(f + offset, f1 + offset, size);
  }
}

void PerSampleSolve::attempt() {
  plan();
  take_stages();
  measure();
  decide();
  for (int64_t r = 0; r < rows(); ++r) {
    if (!samples_[r].accepted) continue;
    record(r);
    interpolate(r);
  }
  move();
  check_progress();
}

}  // namespace fastnode
