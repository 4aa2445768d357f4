// A step of every running sample.
#include <cmath>
#include <cstring>
#include <limits>

#include "driver/per_sample.h"
#include "kernels/rk/rk_stage.h"

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
  for (auto* each : {&t1_, &step_, &taken_, &times_}) each->resize(rows());
  for (int64_t r = 0; r < rows(); ++r) {
    const double room = running_[r] ? std::abs(end_[r] - t_[r]) : 0;
    taken_[r] = std::min(h_[r], room);
    t1_[r] = !running_[r] ? t_[r] : h_[r] < room ? t_[r] + h_[r] * direction_[r] : end_[r];
    step_[r] = t1_[r] - t_[r];
  }
}

void PerSampleSolve::take_stages() {
  const Tableau& tableau = *options_.tableau;
  for (size_t i = 1; i < k_.size(); ++i) {
    combine(tableau.stages[i], step_, stage_);
    const double c = tableau.times[i];
    for (int64_t r = 0; r < rows(); ++r) times_[r] = c == 1 ? t1_[r] : t_[r] + c * step_[r];
    field_(times_, c == 1 ? &direction_ : nullptr, stage_, k_[i]);
  }
  y1_ = &stage_;
  if (!tableau.fsal) {
    combine(tableau.solution, step_, solution_);
    y1_ = &solution_;
  }
  for (int64_t r = 0; r < rows(); ++r) {
    if (running_[r]) trace_.nfe[index_[r]] += int64_t(k_.size()) - 1;
  }
}

void PerSampleSolve::measure() {
  norm_rows(y_, y1_->tensor(), k_, options_.tableau->error, step_, rtol_, atol_, ratio_);
  stiffness_.assign(rows(), std::numeric_limits<double>::quiet_NaN());
  if (!options_.pair) return;
  zero_.assign(rows(), 0.0);
  one_.assign(rows(), 1.0);
  std::vector<double> states;
  norm_rows(y_, y_, k_, options_.pair->slopes, one_, zero_, one_, stiffness_);
  norm_rows(y_, y_, k_, options_.pair->states, one_, zero_, one_, states);
  for (int64_t r = 0; r < rows(); ++r) {
    if (stiffness_[r] != 0) stiffness_[r] /= states[r] * options_.pair->stability;
  }
}

void PerSampleSolve::decide(std::vector<char>& accepted, std::vector<char>& stuck) {
  const Controller& controller = options_.controller;
  for (int64_t r = 0; r < rows(); ++r) {
    if (!running_[r]) continue;
    ++attempts_[r];
    const double following = controller.next_step(taken_[r], ratio_[r], before_[r], earlier_[r]);
    accepted[r] = controller.accepts(taken_[r], ratio_[r]);
    if (!accepted[r]) {
      ++trace_.rejected[index_[r]];
      stuck[r] = following >= taken_[r];
      h_[r] = following;
      continue;
    }
    ++trace_.accepted[index_[r]];
    h_[r] = taken_[r] < h_[r] ? std::max(following, h_[r]) : following;
    earlier_[r] = before_[r];
    before_[r] = ratio_[r];
  }
}

void PerSampleSolve::record(int64_t row) {
  SampleSteps& steps = trace_.steps[index_[row]];
  steps.t1.push_back(t1_[row]);
  steps.error.push_back(ratio_[row]);
  steps.stiffness.push_back(stiffness_[row]);
  const int64_t offset = row * bytes_;
  if (options_.keep_states) append(steps.states, bytes_of(y1_->tensor()) + offset, bytes_);
  if (options_.keep_slopes) {
    for (const at::Tensor& each : k_) append(steps.slopes, bytes_of(each) + offset, bytes_);
  }
}

void PerSampleSolve::interpolate(int64_t row) {
  const double* times = ts_.const_data_ptr<double>() + index_[row] * outputs_;
  const int64_t offset = row * width_;
  for (int64_t& next = pending_[row]; next < outputs_; ++next) {
    const double time = times[next];
    if ((time - t1_[row]) * direction_[row] > 0) return;
    char* out = bytes_of(trace_.ys) + (next * batch_ + index_[row]) * bytes_;
    if (time == t1_[row]) {
      std::memcpy(out, bytes_of(y1_->tensor()) + row * bytes_, bytes_);
      continue;
    }
    const double x = (time - t_[row]) / step_[row];
    // Its memory is kept: an allocation costs more than a narrow row.
    dense_.stages.clear();
    dense_.values.clear();
    for (const Polynomial& each : options_.tableau->dense) {
      dense_.stages.push_back(each.stage);
      dense_.values.push_back(step_[row] * each.at(x));
    }
    dispatch_real(dtype_, [&]<class T>(T*) {
      rk_stage_range(y_.const_data_ptr<T>() + offset, row_terms<T>(k_, dense_, offset), 0, width_,
                     reinterpret_cast<T*>(out));
    });
  }
}

void PerSampleSolve::move(const std::vector<char>& accepted) {
  char *y = bytes_of(y_), *f = bytes_of(k_[0]);
  const char *y1 = bytes_of(y1_->tensor()), *f1 = bytes_of(k_.back());
  for (int64_t r = 0; r < rows();) {
    if (!accepted[r]) {
      ++r;
      continue;
    }
    // Neighbours that were accepted move at once.
    const int64_t first = r;
    for (; r < rows() && accepted[r]; ++r) {
      t_[r] = t1_[r];
      if (t_[r] == end_[r]) running_[r] = 0;
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
  std::vector<char> accepted(rows(), 0), stuck(rows(), 0);
  decide(accepted, stuck);
  for (int64_t r = 0; r < rows(); ++r) {
    if (!accepted[r]) continue;
    record(r);
    interpolate(r);
  }
  move(accepted);
  check_progress(stuck);
}

}  // namespace fastnode
