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
    return {sample, times[0], times[control.outputs - 1], control.direction[sample],
            solve.records_[size_t(sample)].h};
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
      tile.evaluate(samples, [&](int64_t s) { return T(slots[size_t(s)].t); }, tile.y, tile.k[0]);
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
        if (control.first_step) slot.h = control.first_step[slot.sample];
        slot.h = control.controller.clip(slot.h);
        check_progress(s, 1);
        if (slot.running) record(slot).h = slot.h;
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
      const size_t i = size_t(s);
      const double h0 = d0[i] < 1e-5 || d1[i] < 1e-5 ? 1e-6 : 0.01 * d0[i] / d1[i];
      slot.h = slot.running ? std::min(h0, std::abs(slot.end - slot.t)) : 0;
      slot.step = slot.h * slot.direction;
      if (slot.running) ++record(slot).evaluations;
    }
    tile.combine(
        count(), {0}, [&](int64_t s, size_t) { return slots[size_t(s)].step; }, tile.stage);
    tile.evaluate(
        count(), [&](int64_t s) { return T(slots[size_t(s)].t + slots[size_t(s)].step); },
        tile.stage, tile.k[1]);
    tile.norms(
        count(), tile.y, {1, 0}, [](int64_t, size_t j) { return j == 0 ? 1.0 : -1.0; }, tolerance(),
        d2);
    for (size_t i = 0; i < slots.size(); ++i) {
      Slot& slot = slots[i];
      d2[i] /= slot.h;
      if (!std::isfinite(d2[i])) continue;
      const double h1 = d1[i] <= 1e-15 && d2[i] <= 1e-15
                            ? std::max(1e-6, slot.h * 1e-3)
                            : std::pow(0.01 / std::max(d1[i], d2[i]), 1.0 / tableau.order);
      slot.h = std::min(100 * slot.h, h1);
    }
  }

  void fail(int64_t s, Failure failure, size_t slopes) {
    Slot& slot = slots[size_t(s)];
    SampleRecord& found = record(slot);
    slot.running = false;
    found.failure = failure;
    found.t = slot.t;
    found.h = slot.h * slot.direction;
    for (size_t i = 0; i < slopes; ++i) {
      tile.get(tile.k[i], s, row.data());
      for (T x : row) {
        found.saw_nan = found.saw_nan || std::isnan(x);
        found.saw_infinity = found.saw_infinity || std::isinf(x);
      }
    }
  }

  // Fails a sample that cannot try a step of size h.
  void check_progress(int64_t s, size_t slopes) {
    const Slot& slot = slots[size_t(s)];
    if (slot.stuck || slot.t + slot.h * slot.direction == slot.t) {
      fail(s, std::isfinite(slot.ratio) ? Failure::kUnderflow : Failure::kNotFinite, slopes);
    } else if (slot.attempts >= control.max_num_steps) {
      fail(s, Failure::kTooManySteps, slopes);
    }
  }
};

}  // namespace fastnode
