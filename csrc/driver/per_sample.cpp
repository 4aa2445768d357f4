#include "driver/per_sample.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <torch/csrc/utils/pybind.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "driver/python_calls.h"

namespace fastnode {
namespace {

// Finished samples leave once they are this part of the batch
// (fastnode/engines/reference/per_sample.py).
constexpr int64_t kCompaction = 8;

std::vector<double> numbers(const at::Tensor& x) {
  const double* begin = x.const_data_ptr<double>();
  return {begin, begin + x.numel()};
}

}  // namespace

PerSampleSolve::PerSampleSolve(py::object problem, const at::Tensor& y0, const at::Tensor& f0,
                               const at::Tensor& ts, const at::Tensor& direction,
                               const at::Tensor& rtol, const at::Tensor& atol,
                               SampleOptions options)
    : field_(problem, y0),
      options_(std::move(options)),
      batch_(y0.size(0)),
      outputs_(ts.size(1)),
      width_(y0.numel() / y0.size(0)),
      bytes_(width_ * y0.element_size()),
      ts_(ts),
      dtype_(y0.scalar_type()),
      pending_(batch_, 1),
      attempts_(batch_, 0),
      running_(batch_, 1),
      h_(batch_, 0.0),
      direction_(numbers(direction)),
      before_(batch_, 1.0),
      earlier_(batch_, 1.0),
      rtol_(numbers(rtol)),
      atol_(numbers(atol)),
      y_(y0.detach().clone(at::MemoryFormat::Contiguous)),
      k_(options_.tableau->stages.size()) {
  k_[0] = f0.detach().clone(at::MemoryFormat::Contiguous);
  const double* times = ts_.const_data_ptr<double>();
  for (int64_t b = 0; b < batch_; ++b) {
    index_.push_back(b);
    t_.push_back(times[b * outputs_]);
    end_.push_back(times[(b + 1) * outputs_ - 1]);
  }
  std::vector<int64_t> shape = y0.sizes().vec();
  shape.insert(shape.begin(), outputs_);
  trace_.ys = at::full(shape, std::numeric_limits<double>::quiet_NaN(), y0.options());
  if (y0.nbytes() > 0) std::memcpy(trace_.ys.mutable_data_ptr(), y_.const_data_ptr(), y0.nbytes());
  trace_.nfe.assign(batch_, 1);
  trace_.accepted.assign(batch_, 0);
  trace_.rejected.assign(batch_, 0);
  trace_.status.assign(batch_, 0);
  trace_.steps.resize(batch_);
}

bool PerSampleSolve::any_running() const {
  for (char each : running_) {
    if (each) return true;
  }
  return false;
}

SampleTrace PerSampleSolve::run() {
  std::vector<char> broken(batch_, 0);
  dispatch_real(dtype_, [&]<class T>(T*) {
    const T *y = y_.const_data_ptr<T>(), *f = k_[0].const_data_ptr<T>();
    for (int64_t i = 0; i < batch_ * width_; ++i) {
      if (!std::isfinite(y[i]) || !std::isfinite(f[i])) broken[i / width_] = 1;
    }
  });
  fail(Failure::kNotFinite, broken);
  if (any_running()) {
    if (options_.first_step) {
      h_ = numbers(*options_.first_step);
    } else {
      initial_steps();
    }
    for (double& h : h_) h = options_.controller.clip(h);
    ratio_.assign(batch_, 0.0);
    check_progress(std::vector<char>(batch_, 0));
  }
  while (any_running()) {
    compact();
    attempt();
  }
  return std::move(trace_);
}

void PerSampleSolve::compact() {
  std::vector<int64_t> left;
  for (int64_t r = 0; r < rows(); ++r) {
    if (running_[r]) left.push_back(r);
  }
  const int64_t finished = rows() - int64_t(left.size());
  if (finished == 0 || kCompaction * finished < rows()) return;
  for (auto* each : {&index_, &pending_, &attempts_}) keep(*each, left);
  for (auto* each : {&t_, &end_, &h_, &direction_, &before_, &earlier_, &rtol_, &atol_}) {
    keep(*each, left);
  }
  keep(running_, left);
  y_ = take_rows(y_, left);
  k_[0] = take_rows(k_[0], left);
  const at::Tensor kept = at::empty({int64_t(left.size())}, at::kLong);
  std::memcpy(kept.mutable_data_ptr(), left.data(), kept.nbytes());
  field_.take(kept);
}

void PerSampleSolve::initial_steps() {
  const std::vector<double> one(rows(), 1.0);
  std::vector<double> d0, d1, d2, h0(rows());
  norm_rows(y_, y_, {y_}, {{0}, {1.0}}, one, rtol_, atol_, d0);
  norm_rows(y_, y_, k_, {{0}, {1.0}}, one, rtol_, atol_, d1);
  times_.resize(rows());
  step_.resize(rows());
  for (int64_t r = 0; r < rows(); ++r) {
    h0[r] = running_[r] ? Controller::trial_step(d0[r], d1[r], std::abs(end_[r] - t_[r])) : 0;
    step_[r] = h0[r] * direction_[r];
    times_[r] = t_[r] + step_[r];
    if (running_[r]) ++trace_.nfe[index_[r]];
  }
  combine({{0}, {1.0}}, step_, stage_);
  at::Tensor f1;
  field_(times_, nullptr, stage_, f1);
  norm_rows(y_, y_, {f1, k_[0]}, {{0, 1}, {1.0, -1.0}}, one, rtol_, atol_, d2);
  for (int64_t r = 0; r < rows(); ++r) {
    h_[r] = options_.controller.first_step(h0[r], d1[r], d2[r], LibraryPower());
  }
}

void PerSampleSolve::check_progress(const std::vector<char>& stuck) {
  std::vector<char> broken(rows(), 0), held(rows(), 0), exhausted(rows(), 0);
  for (int64_t r = 0; r < rows(); ++r) {
    if (!running_[r]) continue;
    if (stuck[r] || t_[r] + h_[r] * direction_[r] == t_[r]) {
      (std::isfinite(ratio_[r]) ? held : broken)[r] = 1;
    } else if (attempts_[r] >= options_.max_num_steps) {
      exhausted[r] = 1;
    }
  }
  fail(Failure::kNotFinite, broken);
  fail(Failure::kUnderflow, held);
  fail(Failure::kTooManySteps, exhausted);
}

void PerSampleSolve::fail(Failure failure, const std::vector<char>& which) {
  std::vector<int64_t> chosen;
  for (int64_t r = 0; r < rows(); ++r) {
    if (which[r]) chosen.push_back(r);
  }
  if (chosen.empty()) return;
  if (options_.throws) {
    std::vector<int64_t> samples;
    std::vector<double> times, steps;
    for (int64_t r : chosen) {
      samples.push_back(index_[r]);
      times.push_back(t_[r]);
      steps.push_back(h_[r] * direction_[r]);
    }
    py::list slopes;
    for (const at::Tensor& each : k_) {
      if (each.defined() && each.size(0) == rows()) {
        slopes.append(wrap(take_rows(each, chosen)));
      }
    }
    python_calls().raise_failure(int(failure), samples, times, steps, slopes,
                                 options_.max_num_steps);
  }
  for (int64_t r : chosen) {
    trace_.status[index_[r]] = int64_t(failure);
    running_[r] = 0;
  }
}

}  // namespace fastnode
