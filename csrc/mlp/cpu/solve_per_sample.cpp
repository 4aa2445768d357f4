#include "mlp/cpu/solve_per_sample.h"

#include <cmath>
#include <limits>

#include "mlp/cpu/barrier.h"
#include "mlp/cpu/per_sample_tile.h"
#include "step_control/dense_output.h"
#include "step_control/stiffness.h"

namespace fastnode {

template <class T>
MlpSamples<T>::MlpSamples(const Field<T>& field, int64_t batch, SampleControl control)
    : field_(&field),
      batch_(batch),
      control_(std::move(control)),
      records_(size_t(batch)),
      kept_(size_t(control_.keep_states ? batch : 0)),
      initial_(size_t(batch * field.dim())) {
  control_.controller.resolution = Resolution<T>::value;
}

// One thread of a solve.
template <class T>
struct MlpSamples<T>::Worker {
  MlpSamples& solve;
  const SampleControl& control;
  const Tableau& tableau;
  const int64_t dim, capacity;  // capacity: samples of the tile at most
  const T* const y0;
  T* const ys;
  SampleTile<T> tile;
  std::vector<TileSample> samples;  // those in the tile
  std::vector<double> norms, states;
  std::vector<T> row;
  InterruptPoll poll;
  const int64_t work;  // multiplications of an evaluation of a sample

  Worker(MlpSamples& solve, const T* y0, T* ys, int64_t capacity, bool leads)
      : solve(solve),
        control(solve.control_),
        tableau(*control.tableau),
        dim(solve.field_->dim()),
        capacity(capacity),
        y0(y0),
        ys(ys),
        tile(*solve.field_, capacity, tableau),
        row(size_t(dim)),
        poll(solve.interruption_, leads),
        work(solve.field_->multiplications()) {}

  int64_t count() const { return int64_t(samples.size()); }
  TileSample& at(int64_t s) { return samples[size_t(s)]; }
  SampleRecord& record(const TileSample& each) { return solve.records_[size_t(each.index)]; }

  TileSample make_sample(int64_t index) const {
    const double* const times = control.times + index * control.outputs;
    TileSample out{index, times[control.outputs - 1], {}};
    out.course.t = times[0];
    out.course.h = solve.records_[size_t(index)].h;
    out.course.direction = control.direction[index];
    return out;
  }

  template <class F>
  void evaluate(F time, T* state, T* derivative) {
    tile.evaluate(count(), time, state, derivative);
    poll.after(work * count());
  }

  auto tolerance() const {
    return [this](int64_t s) {
      const int64_t index = samples[size_t(s)].index;
      return std::pair(T(control.rtol[index]), T(control.atol[index]));
    };
  }

  // Weights times the step of each sample.
  auto scaled(const Weights& weights) const {
    return [this, &weights](int64_t s, size_t j) {
      return samples[size_t(s)].course.step * weights.values[j];
    };
  }

  // The initial derivatives and the first steps of all samples, a tile at a time.
  void begin() {
    for (int64_t first;
         !poll.requested() && (first = solve.begun_.fetch_add(capacity)) < solve.batch_;) {
      const int64_t part = std::min(capacity, solve.batch_ - first);
      tile.resize(part);
      samples.clear();
      for (int64_t s = 0; s < part; ++s) samples.push_back(make_sample(first + s));
      for (int64_t s = 0; s < part; ++s) tile.put(tile.y, s, y0 + (first + s) * dim);
      evaluate([&](int64_t s) { return as_time<T>(at(s).course.t); }, tile.y, tile.k[0]);
      for (int64_t s = 0; s < part; ++s) {
        tile.get(tile.y, s, ys + (first + s) * dim);
        tile.get(tile.k[0], s, solve.initial_.data() + (first + s) * dim);
      }
      for (int64_t s = 0; s < part; ++s) {
        const TileSample& each = at(s);
        record(each).evaluations = 1;
        const T *f = solve.initial_.data() + each.index * dim, *y = y0 + each.index * dim;
        for (int64_t d = 0; d < dim && each.running; ++d) {
          if (!std::isfinite(y[d]) || !std::isfinite(f[d])) fail(s, Failure::kNotFinite, 1);
        }
      }
      if (!control.first_step) choose_first_steps();
      for (int64_t s = 0; s < part; ++s) {
        TileSample& each = at(s);
        if (!each.running) continue;
        double& h = each.course.h;
        if (control.first_step) h = control.first_step[each.index];
        h = control.controller.clip(h);
        check_progress(s, 1);
        if (each.running) record(each).h = h;
      }
    }
    samples.clear();
  }

  // fastnode.control.controllers.initial_step, which gives the source, for each sample.
  void choose_first_steps() {
    const auto one = [](int64_t, size_t) { return 1.0; };
    const auto difference = [](int64_t, size_t j) { return j == 0 ? 1.0 : -1.0; };
    copy_tile(tile.frame().extent(dim), tile.y, tile.k[1]);
    std::vector<double> d0, d1, d2;
    tile.norms(count(), tile.y, {1}, one, tolerance(), d0);
    tile.norms(count(), tile.y, {0}, one, tolerance(), d1);
    for (int64_t s = 0; s < count(); ++s) {
      const TileSample& each = at(s);
      Course& course = at(s).course;
      const double span = std::abs(each.end - course.t);
      course.taken = each.running ? Controller::trial_step(d0[size_t(s)], d1[size_t(s)], span) : 0;
      course.step = course.taken * course.direction;
      if (each.running) ++record(each).evaluations;
    }
    tile.combine(count(), {0}, [&](int64_t s, size_t) { return at(s).course.step; }, tile.stage);
    const auto time = [&](int64_t s) { return as_time<T>(at(s).course.t + at(s).course.step); };
    evaluate(time, tile.stage, tile.k[1]);
    tile.norms(count(), tile.y, {1, 0}, difference, tolerance(), d2);
    for (size_t i = 0; i < samples.size(); ++i) {
      Course& course = samples[i].course;
      course.h = control.controller.first_step(course.taken, d1[i], d2[i], LibraryPower());
    }
  }

  // The next waiting sample into position s of the tile; whether there was one.
  bool admit(int64_t s) {
    for (int64_t index; (index = solve.next_.fetch_add(1)) < solve.batch_;) {
      if (solve.records_[size_t(index)].failure != Failure::kNone) continue;
      at(s) = make_sample(index);
      tile.put(tile.y, s, y0 + index * dim);
      tile.put(tile.k[0], s, solve.initial_.data() + index * dim);
      return true;
    }
    return false;
  }

  void run() {
    tile.resize(capacity);
    samples.resize(size_t(capacity));
    int64_t held = 0;
    while (held < capacity && admit(held)) ++held;
    while (true) {
      samples.resize(size_t(held));
      if (held == 0 || poll.requested()) return;
      tile.resize(held);
      attempt();
      for (int64_t s = held; s-- > 0;) {
        if (at(s).running || admit(s)) continue;
        --held;
        at(s) = at(held);
        for (T* x : {tile.y, tile.k[0]}) tile.move(x, held, s);
      }
    }
  }

  // A step of every sample, accepted or not.
  void attempt() {
    for (TileSample& each : samples) plan(each.course, each.end);
    take_stages();
    tile.norms(count(), tile.y1, tableau.error.stages, scaled(tableau.error), tolerance(), norms);
    bool any = false, all = true;
    for (size_t i = 0; i < samples.size(); ++i) {
      TileSample& each = samples[i];
      each.accepted = settle(each.course, control.controller, norms[i], LibraryPower());
      record(each).rejected += !each.accepted;
      any = any || each.accepted;
      all = all && each.accepted;
    }
    if (any) {
      record_steps();
      save();
      move_on(all);
    }
    for (int64_t s = 0; s < count(); ++s) {
      TileSample& each = at(s);
      each.running = each.course.t != each.end;
      if (each.running) check_progress(s, tableau.stages.size());
    }
  }

  void take_stages() {
    const auto combine = [&](const Weights& weights, T* out) {
      tile.combine(count(), weights.stages, scaled(weights), out);
    };
    const size_t stages = tableau.stages.size();
    for (size_t i = 1; i < stages; ++i) {
      combine(tableau.stages[i], tile.stage);
      const double c = tableau.times[i];
      const auto time = [&](int64_t s) { return stage_time<T>(at(s).course, c); };
      evaluate(time, tile.stage, tile.k[i]);
    }
    if (!tableau.fsal) combine(tableau.solution, tile.y1);
    for (const TileSample& each : samples) record(each).evaluations += int64_t(stages) - 1;
  }

  void record_steps() {
    if (control.pair) {
      const auto measure = [&](const Weights& weights, std::vector<double>& out) {
        tile.norms(
            count(), tile.y, weights.stages, [&](int64_t, size_t j) { return weights.values[j]; },
            [](int64_t) { return std::pair(T(0), T(1)); }, out, true);
      };
      measure(control.pair->derivatives, norms);
      measure(control.pair->states, states);
    }
    for (size_t i = 0; i < samples.size(); ++i) {
      const TileSample& each = samples[i];
      if (!each.accepted) continue;
      if (control.keep_states) keep(int64_t(i));
      SampleRecord& found = record(each);
      found.t1.push_back(each.course.t);
      found.error.push_back(each.course.ratio);
      found.stiffness.push_back(control.pair
                                    ? stiffness_of(norms[i], states[i], control.pair->stability)
                                    : std::numeric_limits<double>::quiet_NaN());
    }
  }

  void keep(int64_t s) {
    std::vector<T>& kept = solve.kept_[size_t(at(s).index)];
    const size_t before = kept.size();
    kept.resize(before + size_t(2 * dim));
    tile.get(tile.y, s, kept.data() + before);
    tile.get(tile.k[0], s, kept.data() + before + dim);
  }

  // The next output of a sample.
  double time(const TileSample& each) const {
    return control.times[each.index * control.outputs + each.next];
  }

  // Whether the step just accepted reaches it.
  bool due(const TileSample& each) const {
    return each.accepted && each.next < control.outputs &&
           (time(each) - each.course.t) * each.course.direction <= 0;
  }

  void write(const T* state, int64_t s) {
    TileSample& each = at(s);
    tile.get(state, s, ys + (each.next * solve.batch_ + each.index) * dim);
    ++each.next;
  }

  // The outputs that the accepted steps have reached, at most one of each sample in each round.
  void save() {
    for (bool first = true;; first = false) {
      bool any = false;
      for (int64_t s = 0; s < count(); ++s) {
        const TileSample& each = at(s);
        if (!due(each)) continue;
        if (time(each) == each.course.t) {
          write(tile.y1, s);
          continue;
        }
        any = true;
        if (first) record(each).evaluations += int64_t(tableau.further.size());
      }
      if (!any) return;
      if (first) take_further_stages();
      std::vector<int> stages;
      for (const Polynomial& each : tableau.dense) stages.push_back(each.stage);
      const auto weight = [&](int64_t s, size_t j) {
        const TileSample& each = at(s);
        if (!due(each)) return 0.0;
        return dense_weight(tableau.dense[j], each.course.t_before, each.course.t, time(each));
      };
      tile.combine(count(), stages, weight, tile.output);
      for (int64_t s = 0; s < count(); ++s) {
        if (due(at(s))) write(tile.output, s);
      }
    }
  }

  // The stages that only dense output needs.
  void take_further_stages() {
    for (size_t i = 0; i < tableau.further.size(); ++i) {
      const Weights& weights = tableau.further[i];
      tile.combine(count(), weights.stages, scaled(weights), tile.further);
      const auto time = [&](int64_t s) {
        const Course& course = at(s).course;
        const double t = at(s).accepted ? course.t_before : course.t;
        return as_time<T>(t + tableau.further_times[i] * course.step);
      };
      evaluate(time, tile.further, tile.k[tableau.stages.size() + i]);
    }
  }

  // The next step of a sample begins where the one that was accepted ends.
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
      if (!at(s).accepted) continue;
      tile.copy(tile.y1, s, tile.y);
      tile.copy(last, s, tile.k[0]);
    }
  }

  // Fails a sample that cannot try another step.
  void check_progress(int64_t s, size_t stages) {
    const Failure failure = failure_of(at(s).course, control.max_num_steps);
    if (failure != Failure::kNone) fail(s, failure, stages);
  }

  void fail(int64_t s, Failure failure, size_t stages) {
    TileSample& each = at(s);
    SampleRecord& found = record(each);
    each.running = false;
    found.failure = failure;
    found.t = each.course.t;
    found.h = each.course.h * each.course.direction;
    for (size_t i = 0; i < stages; ++i) {
      tile.get(tile.k[i], s, row.data());
      for (T x : row) {
        found.saw_nan = found.saw_nan || std::isnan(x);
        found.saw_infinity = found.saw_infinity || std::isinf(x);
      }
    }
  }
};

template <class T>
bool MlpSamples<T>::run(const T* y0, T* ys, int threads, const Parallel& parallel) {
  const int64_t lanes = field_->lanes;
  const auto capacity = [&](int count) {
    const int64_t share = round_up((batch_ + count - 1) / count, lanes);
    return field_->sample_major ? batch_ : std::min(field_->most, share);
  };
  std::optional<Barrier> barrier;
  const auto prepare = [&](int count) {
    barrier.emplace(count);
    interruption_.begin(count);
  };
  const auto body = [&](int thread, int count) {
    Worker worker(*this, y0, ys, capacity(count), thread == 0);
    worker.begin();
    barrier->wait();
    worker.run();
    worker.poll.finish();
  };
  threads =
      field_->sample_major ? 1 : int(std::min<int64_t>(threads, (batch_ + lanes - 1) / lanes));
  if (threads <= 1) {
    prepare(1);
    body(0, 1);
  } else {
    parallel(threads, prepare, body);
  }
  return !interruption_.requested();
}

template class MlpSamples<float>;
template class MlpSamples<double>;

}  // namespace fastnode
