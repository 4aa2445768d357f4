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
      direction_(numbers(direction)),
      rtol_(numbers(rtol)),
      atol_(numbers(atol)),
      y_(y0.detach().clone(at::MemoryFormat::Contiguous)),
      k_(options_.tableau->stages.size()) {
  options_.controller.resolution = resolution_of(dtype_);
  k_[0] = f0.detach().clone(at::MemoryFormat::Contiguous);
  const double* times = ts_.const_data_ptr<double>();
  for (int64_t b = 0; b < batch_; ++b) {
    SampleCourse& each = samples_.emplace_back(SampleCourse{b, times[(b + 1) * outputs_ - 1], {}});
    each.course.t = times[b * outputs_];
    each.course.direction = direction_[size_t(b)];
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
  for (const SampleCourse& each : samples_) {
    if (each.running) return true;
  }
  return false;
}

SampleTrace PerSampleSolve::run() {
  std::vector<int64_t> broken;
  dispatch_real(dtype_, [&]<class T>(T*) {
    const T *y = y_.const_data_ptr<T>(), *f = k_[0].const_data_ptr<T>();
    for (int64_t b = 0; b < batch_; ++b) {
      for (int64_t i = b * width_; i < (b + 1) * width_; ++i) {
        if (std::isfinite(y[i]) && std::isfinite(f[i])) continue;
        broken.push_back(b);
        break;
      }
    }
  });
  fail(Failure::kNotFinite, broken);
  if (any_running()) {
    if (options_.first_step) {
      const double* h = options_.first_step->const_data_ptr<double>();
      for (SampleCourse& each : samples_) each.course.h = h[each.sample];
    } else {
      initial_steps();
    }
    for (auto& each : samples_) each.course.h = options_.controller.clip(each.course.h);
    check_progress();
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
    if (samples_[r].running) left.push_back(r);
  }
  const int64_t finished = rows() - int64_t(left.size());
  if (finished == 0 || kCompaction * finished < rows()) return;
  keep(samples_, left);
  for (auto* each : {&direction_, &rtol_, &atol_}) keep(*each, left);
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
    const SampleCourse& each = samples_[r];
    const Course& course = each.course;
    const double span = std::abs(each.end - course.t);
    h0[r] = each.running ? Controller::trial_step(d0[r], d1[r], span) : 0;
    step_[r] = h0[r] * course.direction;
    times_[r] = course.t + step_[r];
    if (each.running) ++trace_.nfe[each.sample];
  }
  combine({{0}, {1.0}}, step_, stage_);
  at::Tensor f1;
  field_(times_, nullptr, stage_, f1);
  norm_rows(y_, y_, {f1, k_[0]}, {{0, 1}, {1.0, -1.0}}, one, rtol_, atol_, d2);
  for (int64_t r = 0; r < rows(); ++r) {
    samples_[r].course.h = options_.controller.first_step(h0[r], d1[r], d2[r], LibraryPower());
  }
}

void PerSampleSolve::check_progress() {
  std::vector<int64_t> failed[kFailures];
  for (int64_t r = 0; r < rows(); ++r) {
    if (!samples_[r].running) continue;
    failed[int(failure_of(samples_[r].course, options_.max_num_steps))].push_back(r);
  }
  for (int each = 1; each < kFailures; ++each) fail(Failure(each), failed[each]);
}

void PerSampleSolve::fail(Failure failure, const std::vector<int64_t>& chosen) {
  if (chosen.empty()) return;
  if (options_.throws) {
    std::vector<int64_t> samples;
    std::vector<double> times, steps;
    for (int64_t r : chosen) {
      const Course& course = samples_[r].course;
      samples.push_back(samples_[r].sample);
      times.push_back(course.t);
      steps.push_back(course.h * course.direction);
    }
    py::list derivatives;
    for (const at::Tensor& each : k_) {
      if (each.defined() && each.size(0) == rows()) {
        derivatives.append(wrap(take_rows(each, chosen)));
      }
    }
    python_calls().raise_failure(int(failure), samples, times, steps, derivatives,
                                 options_.max_num_steps);
  }
  for (int64_t r : chosen) {
    trace_.status[samples_[r].sample] = int64_t(failure);
    samples_[r].running = false;
  }
}

}  // namespace fastnode
