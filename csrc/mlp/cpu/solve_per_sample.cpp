#include "mlp/cpu/solve_per_sample.h"

#include "mlp/cpu/barrier.h"
#include "mlp/cpu/solve_per_sample_start.h"

namespace fastnode {

template <class T>
MlpSamples<T>::MlpSamples(const MlpField<T>& field, bool by_sample, int64_t batch,
                          SampleControl control)
    : field_(&field),
      by_sample_(by_sample),
      batch_(batch),
      control_(std::move(control)),
      records_(size_t(batch)),
      kept_(size_t(control_.keep_states ? batch : 0)),
      slopes_(size_t(batch * field.dim())) {}

// One thread of a solve.
template <class T>
struct MlpSamples<T>::Worker : Starter {
  using Starter::capacity;
  using Starter::check_progress;
  using Starter::control;
  using Starter::count;
  using Starter::dim;
  using Starter::norms;
  using Starter::record;
  using Starter::slot_of;
  using Starter::slots;
  using Starter::solve;
  using Starter::Starter;
  using Starter::states;
  using Starter::tableau;
  using Starter::tile;
  using Starter::tolerance;
  using Starter::y0;
  using Starter::ys;

  // The next sample that waits into a place of the tile; whether there was one.
  bool admit(int64_t place) {
    for (int64_t sample; (sample = solve.next_.fetch_add(1)) < solve.batch_;) {
      if (solve.records_[size_t(sample)].failure != Failure::kNone) continue;
      slots[size_t(place)] = slot_of(sample);
      tile.put(tile.y, place, y0 + sample * dim);
      tile.put(tile.k[0], place, solve.slopes_.data() + sample * dim);
      return true;
    }
    return false;
  }

  void run() {
    tile.resize(capacity);
    slots.resize(size_t(capacity));
    int64_t held = 0;
    while (held < capacity && admit(held)) ++held;
    while (true) {
      slots.resize(size_t(held));
      if (held == 0) return;
      tile.resize(held);
      attempt();
      for (int64_t s = held; s-- > 0;) {
        if (slots[size_t(s)].running || admit(s)) continue;
        --held;
        slots[size_t(s)] = slots[size_t(held)];
        for (T* x : {tile.y, tile.k[0]}) tile.move(x, held, s);
      }
    }
  }

  // A step of every sample.
  void attempt() {
    for (Slot& slot : slots) plan(slot.course, slot.end);
    take_stages();
    const auto scaled = [&](const Weights& weights) {
      return [&](int64_t s, size_t j) { return slots[size_t(s)].course.step * weights.values[j]; };
    };
    tile.norms(count(), tile.y1, tableau.error.stages, scaled(tableau.error), tolerance(), norms);
    bool any = false, all = true;
    for (size_t i = 0; i < slots.size(); ++i) {
      Slot& slot = slots[i];
      slot.accepted = settle(slot.course, control.controller, norms[i], LibraryPower());
      record(slot).rejected += !slot.accepted;
      any = any || slots[i].accepted;
      all = all && slots[i].accepted;
    }
    if (any) {
      note_steps();
      save();
      move_on(all);
    }
    for (int64_t s = 0; s < count(); ++s) {
      Slot& slot = slots[size_t(s)];
      slot.running = slot.course.t != slot.end;
      if (slot.running) check_progress(s, tableau.stages.size());
    }
  }

  void take_stages() {
    const auto combine = [&](const Weights& weights, T* out) {
      tile.combine(
          count(), weights.stages,
          [&](int64_t s, size_t j) { return slots[size_t(s)].course.step * weights.values[j]; },
          out);
    };
    const size_t stages = tableau.stages.size();
    for (size_t i = 1; i < stages; ++i) {
      combine(tableau.stages[i], tile.stage);
      const double c = tableau.times[i];
      const auto time = [&](int64_t s) { return stage_time<T>(slots[size_t(s)].course, c); };
      tile.evaluate(count(), time, tile.stage, tile.k[i]);
    }
    if (!tableau.fsal) combine(tableau.solution, tile.y1);
    for (const Slot& slot : slots) record(slot).evaluations += int64_t(stages) - 1;
  }

  void note_steps() {
    if (control.pair) {
      const auto measure = [&](const Weights& weights, std::vector<double>& out) {
        tile.norms(
            count(), tile.y, weights.stages, [&](int64_t, size_t j) { return weights.values[j]; },
            [](int64_t) { return std::pair(T(0), T(1)); }, out);
      };
      measure(control.pair->slopes, norms);
      measure(control.pair->states, states);
    }
    for (size_t i = 0; i < slots.size(); ++i) {
      if (!slots[i].accepted) continue;
      if (control.keep_states) keep(int64_t(i));
      SampleRecord& found = record(slots[i]);
      found.t1.push_back(slots[i].course.t);
      found.error.push_back(slots[i].course.ratio);
      found.stiffness.push_back(control.pair
                                    ? stiffness_of(norms[i], states[i], control.pair->stability)
                                    : std::numeric_limits<double>::quiet_NaN());
    }
  }

  void keep(int64_t s) {
    std::vector<T>& kept = solve.kept_[size_t(slots[size_t(s)].sample)];
    const size_t held = kept.size();
    kept.resize(held + size_t(2 * dim));
    tile.get(tile.y, s, kept.data() + held);
    tile.get(tile.k[0], s, kept.data() + held + dim);
  }

  double time(const Slot& slot) const {
    return control.times[slot.sample * control.outputs + slot.next];
  }

  void write(const T* state, int64_t s) {
    Slot& slot = slots[size_t(s)];
    tile.get(state, s, ys + (slot.next * solve.batch_ + slot.sample) * dim);
    ++slot.next;
  }

  // The outputs that the accepted steps have reached, at most one of each sample at a time.
  void save() {
    for (bool first = true;; first = false) {
      bool any = false;
      for (int64_t s = 0; s < count(); ++s) {
        const Slot& slot = slots[size_t(s)];
        if (!due(slot)) continue;
        if (time(slot) == slot.course.t) {
          write(tile.y1, s);
          continue;
        }
        any = true;
        if (first) record(slot).evaluations += int64_t(tableau.further.size());
      }
      if (!any) return;
      if (first) take_further_stages();
      std::vector<int> stages;
      for (const Polynomial& each : tableau.dense) stages.push_back(each.stage);
      const auto weight = [&](int64_t s, size_t j) {
        const Slot& slot = slots[size_t(s)];
        if (!due(slot)) return 0.0;
        const Course& course = slot.course;
        return dense_weight(tableau.dense[j], course.t_before, course.t, time(slot));
      };
      tile.combine(count(), stages, weight, tile.output);
      for (int64_t s = 0; s < count(); ++s) {
        if (due(slots[size_t(s)])) write(tile.output, s);
      }
    }
  }

  bool due(const Slot& slot) const {
    return slot.accepted && slot.next < control.outputs &&
           (time(slot) - slot.course.t) * slot.course.direction <= 0;
  }

  void take_further_stages() {
    for (size_t i = 0; i < tableau.further.size(); ++i) {
      const Weights& weights = tableau.further[i];
      tile.combine(
          count(), weights.stages,
          [&](int64_t s, size_t j) { return slots[size_t(s)].course.step * weights.values[j]; },
          tile.further);
      const auto time = [&](int64_t s) {
        const Slot& slot = slots[size_t(s)];
        const double t = slot.accepted ? slot.course.t_before : slot.course.t;
        return as_time<T>(t + tableau.further_times[i] * slot.course.step);
      };
      tile.evaluate(count(), time, tile.further, tile.k[tableau.stages.size() + i]);
    }
  }

  // Where a step that was accepted ends, another one begins.
  void move_on(bool all) {
    T*& last = tile.k[tableau.stages.size() - 1];
    if (all) {
      const bool shared = tile.stage == tile.y1;
      std::swap(tile.y, tile.y1);
      if (shared) tile.stage = tile.y1;
      std::swap(tile.k[0], last);
      return;
    }
    for (int64_t s = 0; s < count(); ++s) {
      if (!slots[size_t(s)].accepted) continue;
      tile.copy(tile.y1, s, tile.y);
      tile.copy(last, s, tile.k[0]);
    }
  }
};

template <class T>
void MlpSamples<T>::run(const T* y0, T* ys, int threads, const Parallel& parallel) {
  const int64_t lanes = field_->kernels->lanes;
  const auto capacity = [&](int count) {
    const int64_t share = round_up((batch_ + count - 1) / count, lanes);
    return by_sample_ ? batch_ : std::min(2 * lanes, share);
  };
  std::optional<Barrier> barrier;
  const auto prepare = [&](int count) { barrier.emplace(count); };
  const auto body = [&](int, int count) {
    Worker worker(*this, y0, ys, capacity(count));
    worker.begin();
    barrier->wait();
    worker.run();
  };
  threads = by_sample_ ? 1 : int(std::min<int64_t>(threads, (batch_ + lanes - 1) / lanes));
  if (threads <= 1) {
    prepare(1);
    body(0, 1);
  } else {
    parallel(threads, prepare, body);
  }
}

template class MlpSamples<float>;
template class MlpSamples<double>;

}  // namespace fastnode
