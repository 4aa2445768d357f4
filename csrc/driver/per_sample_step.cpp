// A step of every running sample.
#include <cmath>
#include <cstring>
#include <limits>

#include "driver/per_sample.h"
#include "kernels/rk_stage.h"

namespace fastnode {
namespace {

void append(std::vector<char>& to, const at::Tensor& x, int64_t row) {
  const char* from = row_of(x, row);
  to.insert(to.end(), from, from + row_bytes(x));
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
  const std::vector<double> zero(rows(), 0.0), one(rows(), 1.0);
  std::vector<double> states;
  norm_rows(y_, y_, k_, options_.pair->slopes, one, zero, one, stiffness_);
  norm_rows(y_, y_, k_, options_.pair->states, one, zero, one, states);
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
  trace_.sample.push_back(index_[row]);
  trace_.t1.push_back(t1_[row]);
  trace_.error.push_back(ratio_[row]);
  trace_.stiffness.push_back(stiffness_[row]);
  if (options_.keep_states) append(trace_.states, y1_->tensor(), row);
  if (options_.keep_slopes) {
    for (const at::Tensor& each : k_) append(trace_.slopes, each, row);
  }
}

void PerSampleSolve::interpolate(int64_t row) {
  const double* times = ts_.const_data_ptr<double>() + index_[row] * outputs_;
  const int64_t offset = row * width_;
  for (int64_t& next = pending_[row]; next < outputs_; ++next) {
    const double time = times[next];
    if ((time - t1_[row]) * direction_[row] > 0) return;
    char* out = static_cast<char*>(trace_.ys.mutable_data_ptr()) +
                (next * batch_ + index_[row]) * row_bytes(y_);
    if (time == t1_[row]) {
      std::memcpy(out, row_of(y1_->tensor(), row), row_bytes(y_));
      continue;
    }
    const double x = (time - t_[row]) / step_[row];
    Weights weights;
    for (const Polynomial& each : options_.tableau->dense) {
      weights.stages.push_back(each.stage);
      weights.values.push_back(step_[row] * each.at(x));
    }
    dispatch_real(dtype_, [&]<class T>(T*) {
      rk_stage_range(y_.const_data_ptr<T>() + offset, row_terms<T>(k_, weights, offset), 0, width_,
                     reinterpret_cast<T*>(out));
    });
  }
}

void PerSampleSolve::move(const std::vector<char>& accepted) {
  const int64_t bytes = row_bytes(y_);
  const at::Tensor &y1 = y1_->tensor(), &f1 = k_.back();
  for (int64_t r = 0; r < rows(); ++r) {
    if (!accepted[r]) continue;
    t_[r] = t1_[r];
    std::memcpy(row_of(y_, r), row_of(y1, r), bytes);
    std::memcpy(row_of(k_[0], r), row_of(f1, r), bytes);
    if (t_[r] == end_[r]) running_[r] = 0;
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
