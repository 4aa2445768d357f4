// How the samples of a per-sample solve begin, and why they end early.
#pragma once

#include "mlp/cpu/per_sample_tile.h"
#include "mlp/cpu/solve_per_sample.h"

namespace fastnode {

// One thread of a solve: its samples, and how they begin.
template <class T>
struct MlpSamples<T>::Starter {
  MlpSamples& solve;
  const SampleControl& control;
  const Tableau& tableau;
  const int64_t dim, capacity;
  const T* const y0;
  T* const ys;
  SampleTile<T> tile;
  std::vector<Slot> slots;
  std::vector<double> norms, states;
  std::vector<T> row;

  Starter(MlpSamples& whole, const T* start, T* out, int64_t largest)
      : solve(whole),
        control(whole.control_),
        tableau(*control.tableau),
        dim(whole.field_->dim()),
        capacity(largest),
        y0(start),
        ys(out),
        tile(*whole.field_, whole.by_sample_, largest, tableau),
        row(size_t(dim)) {}

  SampleRecord& record(const Slot& slot) { return solve.records_[size_t(slot.sample)]; }
  int64_t count() const { return int64_t(slots.size()); }

  Slot slot_of(int64_t sample) const {
    const double* const times = control.times + sample * control.outputs;
    Slot slot{sample, times[control.outputs - 1], {}};
    slot.course.t = times[0];
    slot.course.h = solve.records_[size_t(sample)].h;
    slot.course.direction = control.direction[sample];
    return slot;
  }

  auto tolerance() const {
    return [this](int64_t s) {
      const int64_t sample = slots[size_t(s)].sample;
      return std::pair(T(control.rtol[sample]), T(control.atol[sample]));
    };
  }

  // The slopes and the first steps of all samples, a tile at a time.
  void begin() {
    for (int64_t first; (first = solve.begun_.fetch_add(capacity)) < solve.batch_;) {
      const int64_t samples = std::min(capacity, solve.batch_ - first);
      tile.resize(samples);
      slots.clear();
      for (int64_t s = 0; s < samples; ++s) slots.push_back(slot_of(first + s));
      for (int64_t s = 0; s < samples; ++s) tile.put(tile.y, s, y0 + (first + s) * dim);
      tile.evaluate(
          samples, [&](int64_t s) { return as_time<T>(slots[size_t(s)].course.t); }, tile.y,
          tile.k[0]);
      for (int64_t s = 0; s < samples; ++s) {
        tile.get(tile.y, s, ys + (first + s) * dim);
        tile.get(tile.k[0], s, solve.slopes_.data() + (first + s) * dim);
      }
      for (int64_t s = 0; s < samples; ++s) {
        Slot& slot = slots[size_t(s)];
        record(slot).evaluations = 1;
        const T *f = solve.slopes_.data() + slot.sample * dim, *y = y0 + slot.sample * dim;
        for (int64_t d = 0; d < dim && slot.running; ++d) {
          if (!std::isfinite(y[d]) || !std::isfinite(f[d])) fail(s, Failure::kNotFinite, 1);
        }
      }
      if (!control.first_step) choose_first_steps();
      for (int64_t s = 0; s < samples; ++s) {
        Slot& slot = slots[size_t(s)];
        if (!slot.running) continue;
        double& h = slot.course.h;
        if (control.first_step) h = control.first_step[slot.sample];
        h = control.controller.clip(h);
        check_progress(s, 1);
        if (slot.running) record(slot).h = h;
      }
    }
    slots.clear();
  }

  // fastnode.control.controllers.initial_step, which gives the source, for each sample.
  void choose_first_steps() {
    const auto one = [](int64_t, size_t) { return 1.0; };
    copy_tile(tile.frame().extent(dim), tile.y, tile.k[1]);
    std::vector<double> d0, d1, d2;
    tile.norms(count(), tile.y, {1}, one, tolerance(), d0);
    tile.norms(count(), tile.y, {0}, one, tolerance(), d1);
    for (int64_t s = 0; s < count(); ++s) {
      Slot& slot = slots[size_t(s)];
      Course& course = slot.course;
      const double span = std::abs(slot.end - course.t);
      course.taken = slot.running ? Controller::trial_step(d0[size_t(s)], d1[size_t(s)], span) : 0;
      course.step = course.taken * course.direction;
      if (slot.running) ++record(slot).evaluations;
    }
    tile.combine(
        count(), {0}, [&](int64_t s, size_t) { return slots[size_t(s)].course.step; }, tile.stage);
    const auto time = [&](int64_t s) {
      const Course& course = slots[size_t(s)].course;
      return as_time<T>(course.t + course.step);
    };
    tile.evaluate(count(), time, tile.stage, tile.k[1]);
    tile.norms(
        count(), tile.y, {1, 0}, [](int64_t, size_t j) { return j == 0 ? 1.0 : -1.0; }, tolerance(),
        d2);
    for (size_t i = 0; i < slots.size(); ++i) {
      Course& course = slots[i].course;
      course.h = control.controller.first_step(course.taken, d1[i], d2[i], LibraryPower());
    }
  }

  void fail(int64_t s, Failure failure, size_t slopes) {
    Slot& slot = slots[size_t(s)];
    SampleRecord& found = record(slot);
    slot.running = false;
    found.failure = failure;
    found.t = slot.course.t;
    found.h = slot.course.h * slot.course.direction;
    for (size_t i = 0; i < slopes; ++i) {
      tile.get(tile.k[i], s, row.data());
      for (T x : row) {
        found.saw_nan = found.saw_nan || std::isnan(x);
        found.saw_infinity = found.saw_infinity || std::isinf(x);
      }
    }
  }

  // Fails a sample that cannot try another step.
  void check_progress(int64_t s, size_t slopes) {
    const Failure failure = failure_of(slots[size_t(s)].course, control.max_num_steps);
    if (failure != Failure::kNone) fail(s, failure, slopes);
  }
};

}  // namespace fastnode
