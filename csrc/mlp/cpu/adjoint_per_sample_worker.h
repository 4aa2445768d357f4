// The steps of a solve of solve_per_sample.h followed backwards, those of each sample from its own
// last to its first. Who has arrived gives its place to one that waits, as on the way there.
#pragma once

#include "mlp/cpu/adjoint_per_sample.h"
#include "mlp/cpu/per_sample_arithmetic.h"
#include "mlp/cpu/step_adjoint.h"

namespace fastnode {

// A sample in a tile on the way back.
struct BackSlot {
  int64_t sample, begin, step;  // its first step and the one at hand, among those of all
  int64_t next;                 // the output to come, of those that were reached
  double direction;
  double t = 0, t1 = 0, h = 0;  // of the step at hand
};

// One thread's part: samples from `from` to `to`, in the order of their numbers.
template <class T>
struct SampleAdjoint : StepBack<T> {
  using StepBack<T>::add;
  using StepBack<T>::all;
  using StepBack<T>::carried;
  using StepBack<T>::clear;
  using StepBack<T>::dim;
  using StepBack<T>::direct;
  using StepBack<T>::field;
  using StepBack<T>::follow;
  using StepBack<T>::frame;
  using StepBack<T>::gk;
  using StepBack<T>::gx;
  using StepBack<T>::gy;
  using StepBack<T>::has_direct;
  using StepBack<T>::k;
  using StepBack<T>::output;
  using StepBack<T>::record;
  using StepBack<T>::sources;
  using StepBack<T>::stages;
  using StepBack<T>::states;
  using StepBack<T>::tableau;
  using StepBack<T>::used_further;
  using StepBack<T>::y;

  const SamplePath<T>& path;
  const T* const of_ys;
  T* const gy0;
  SlotArithmetic<T> arithmetic;
  std::vector<BackSlot> slots;
  std::vector<int> weighted;    // stages that dense output weighs
  int64_t waiting, last;        // samples yet to come
  const int64_t* starts;        // of each sample its first step, and the number of all
  std::vector<T> first_slopes;  // what reaches those of the thread's samples

  SampleAdjoint(const MlpField<T>& with_gradients, const Frame& largest, const SamplePath<T>& taken,
                const T* upstream, T* down, std::vector<T>* sums, const int64_t* first_steps,
                int64_t from, int64_t to)
      : StepBack<T>(with_gradients, largest, *taken.tableau, sums),
        path(taken),
        of_ys(upstream),
        gy0(down),
        arithmetic(field, largest, all + 2),
        waiting(from),
        last(to),
        starts(first_steps),
        first_slopes(size_t((to - from) * field.dim())) {
    for (const Polynomial& each : tableau.dense) weighted.push_back(each.stage);
  }

  int64_t count() const { return int64_t(slots.size()); }
  const T* kept(int64_t step) const { return path.kept + 2 * step * dim(); }

  void put(T* x, int64_t place, const T* row) const {
    for (int64_t d = 0; d < dim(); ++d) x[frame.place(d, place, dim())] = row[d];
  }
  void zero(T* x, int64_t place) const {
    for (int64_t d = 0; d < dim(); ++d) x[frame.place(d, place, dim())] = 0;
  }
  void get(const T* x, int64_t place, T* row) const {
    for (int64_t d = 0; d < dim(); ++d) row[d] = x[frame.place(d, place, dim())];
  }

  double time(const BackSlot& slot) const {
    return path.times[slot.sample * path.outputs + slot.next];
  }
  const T* upstream(int64_t output, int64_t sample) const {
    return of_ys + (output * path.batch + sample) * dim();
  }

  // The next sample that took steps into a place of the tile; whether there was one.
  bool admit(int64_t place) {
    for (; waiting < last; ++waiting) {
      if (starts[waiting] == starts[waiting + 1]) {
        std::copy_n(upstream(0, waiting), dim(), gy0 + waiting * dim());
        continue;
      }
      BackSlot slot{waiting, starts[waiting], starts[waiting + 1] - 1, path.outputs - 1,
                    path.direction[waiting]};
      const double end = path.t1[slot.step];
      while (slot.next > 0 && (time(slot) - end) * slot.direction > 0) --slot.next;
      slots[size_t(place)] = slot;
      zero(gy, place);
      zero(carried, place);
      ++waiting;
      return true;
    }
    return false;
  }

  void run(int64_t capacity) {
    const int64_t from = waiting;
    // What only fills vectors up must be finite, and its gradient zero.
    for (T* x : {y, k[0], gy, carried}) clear(x);
    slots.resize(size_t(capacity));
    int64_t held = 0;
    while (held < capacity && admit(held)) ++held;
    slots.resize(size_t(held));
    while (held > 0) {
      shrink(held);
      step_back();
      for (int64_t s = held; s-- > 0;) {
        if (slots[size_t(s)].step-- > slots[size_t(s)].begin) continue;
        const int64_t sample = slots[size_t(s)].sample;
        get(gy, s, gy0 + sample * dim());
        get(carried, s, first_slopes.data() + (sample - from) * dim());
        if (admit(s)) continue;
        leave(s, --held);
      }
    }
    through_first_slopes(from, capacity);
  }

  // The sample in `place` leaves its place to the last one.
  void leave(int64_t place, int64_t end) {
    slots[size_t(place)] = slots[size_t(end)];
    slots.pop_back();
    for (T* x : {gy, carried}) {
      for (int64_t d = 0; d < dim(); ++d) {
        x[frame.place(d, place, dim())] = x[frame.place(d, end, dim())];
      }
      zero(x, end);
    }
  }

  // A tile no wider than `samples` need.
  void shrink(int64_t samples) {
    const Frame before = frame;
    frame = make_frame(before.by_sample, samples, before.lanes);
    if (frame.by_sample || frame.width() == before.width()) return;
    for (T* x : {gy, carried}) {
      for (int64_t d = 0; d < dim(); ++d) {
        std::copy_n(x + d * before.width(), frame.width(), x + d * frame.width());
      }
    }
    for (T* x : {y, k[0]}) clear(x);
  }

  template <class F>
  void add_weighted(F weight, T* to) {
    const std::vector<T*> one{output};
    arithmetic.combine(
        frame, count(), to, one, {0}, [&](int64_t s, size_t) { return weight(s); }, to);
  }

  // gx = J^T g of all slopes of a step with sizes of each sample's own.
  void step_back() {
    for (int64_t s = 0; s < count(); ++s) {
      BackSlot& slot = slots[size_t(s)];
      const T* const row = kept(slot.step);
      put(y, s, row);
      put(k[0], s, row + dim());
      slot.t =
          slot.step > slot.begin ? path.t1[slot.step - 1] : path.times[slot.sample * path.outputs];
      slot.t1 = path.t1[slot.step];
      slot.h = slot.t1 - slot.t;
    }
    for (size_t i = 1; i < stages; ++i) take_stage(i, tableau.stages[i], tableau.times[i]);
    std::fill(has_direct.begin(), has_direct.end(), 0);
    copy_tile(frame.extent(dim()), carried, direct[stages - 1]);
    has_direct[stages - 1] = 1;
    take_outputs();
    used_further = false;
    for (size_t i = stages; i < all; ++i) used_further = used_further || has_direct[i];
    this->follow_step(true, [this](size_t j) { return gather(j); });
  }

  void take_stage(size_t i, const Weights& weights, double c) {
    arithmetic.combine(
        frame, count(), y, k, weights.stages,
        [&](int64_t s, size_t j) { return slots[size_t(s)].h * weights.values[j]; }, states[i]);
    record(i, arithmetic.times(count(), [&](int64_t s) {
      const BackSlot& slot = slots[size_t(s)];
      if (c == 1 && i < stages) return shifted<T>(slot.t1, -1, slot.direction);
      return T(slot.t + c * slot.h);
    }));
  }

  bool due(const BackSlot& slot) const {
    return slot.next > 0 && (time(slot) - slot.t) * slot.direction > 0;
  }

  // Outputs in (t, t1], at most one of each sample at a time: the state's gradient at t1 in `gy`,
  // the rest into `direct`, and what goes straight to the state at t into gx[all].
  void take_outputs() {
    clear(gx[all]);
    bool further = false;
    while (true) {
      bool any = false, inside = false;
      clear(output);
      for (int64_t s = 0; s < count(); ++s) {
        const BackSlot& slot = slots[size_t(s)];
        if (!due(slot)) continue;
        any = true;
        inside = inside || time(slot) != slot.t1;
        put(output, s, upstream(slot.next, slot.sample));
      }
      if (!any) return;
      const auto is_inside = [&](int64_t s) {
        const BackSlot& slot = slots[size_t(s)];
        return due(slot) && time(slot) != slot.t1;
      };
      add_weighted([&](int64_t s) { return due(slots[size_t(s)]) && !is_inside(s) ? 1.0 : 0.0; },
                   gy);
      if (inside) {
        for (size_t i = stages; i < all && !further; ++i) {
          take_stage(i, tableau.further[i - stages], tableau.further_times[i - stages]);
        }
        further = true;
        add_weighted([&](int64_t s) { return is_inside(s) ? 1.0 : 0.0; }, gx[all]);
        for (const Polynomial& each : tableau.dense) {
          T* const to = direct[size_t(each.stage)];
          if (!has_direct[size_t(each.stage)]) clear(to);
          has_direct[size_t(each.stage)] = 1;
          add_weighted(
              [&](int64_t s) {
                const BackSlot& slot = slots[size_t(s)];
                return is_inside(s) ? dense_weight(each, slot.t, slot.t1, time(slot)) : 0.0;
              },
              to);
        }
      }
      for (BackSlot& slot : slots) slot.next -= due(slot);
    }
  }

  // gk = what reaches the slope of stage j: directly, and by the stages after it, if anything.
  bool gather(size_t j) {
    const Weights& column = this->column(j);
    if (!has_direct[j] && column.stages.empty()) return false;
    sources = gx;
    if (!tableau.fsal) sources[all] = gy;
    arithmetic.combine(
        frame, count(), has_direct[j] ? direct[j] : nullptr, sources, column.stages,
        [&](int64_t s, size_t i) { return slots[size_t(s)].h * column.values[i]; }, gk);
    return true;
  }

  // What reached the slopes with which the thread's samples began, a tile of them at a time.
  void through_first_slopes(int64_t from, int64_t capacity) {
    std::vector<T> row(static_cast<size_t>(dim()));
    for (int64_t first = from, part; first < last; first += part) {
      part = std::min(capacity, last - first);
      frame = make_frame(frame.by_sample, part, frame.lanes);
      for (T* x : {states[0], gk}) clear(x);
      for (int64_t s = 0; s < part; ++s) {
        const int64_t sample = first + s;
        if (starts[sample] == starts[sample + 1]) continue;
        put(states[0], s, kept(starts[sample]));
        put(gk, s, first_slopes.data() + (sample - from) * dim());
      }
      record(0, arithmetic.times(
                    part, [&](int64_t s) { return T(path.times[(first + s) * path.outputs]); }));
      follow(0, gk);
      for (int64_t s = 0; s < part; ++s) {
        get(gx[0], s, row.data());
        T* const to = gy0 + (first + s) * dim();
        const T* const of_start = upstream(0, first + s);
        const bool moved = starts[first + s] != starts[first + s + 1];
        for (int64_t d = 0; d < dim() && moved; ++d) to[d] += row[size_t(d)] + of_start[d];
      }
    }
  }
};

}  // namespace fastnode
