// The steps of a solve of solve_per_sample.h in reverse order, those of each sample from its own
// last to its first. A sample whose first step is done makes room for one that waits, as in the
// solve.
#include "mlp/cpu/adjoint_per_sample.h"

#include "mlp/cpu/per_sample_tile.h"
#include "mlp/cpu/step_adjoint.h"
#include "step_control/dense_output.h"

namespace fastnode {
namespace {

// A sample in a tile.
struct AdjointSample {
  int64_t index;        // in the batch
  int64_t begin, step;  // its first step and the one at hand, among those of all samples
  int64_t next;         // the output to come, of those that were reached
  double direction;
  double t = 0, t1 = 0, h = 0;  // of the step at hand
};

// One thread's part of the backward pass: samples from `from` to `to`, in the order of their
// numbers.
template <class T>
struct PerSampleAdjoint {
  const SamplePath<T>& path;
  const T* const of_ys;
  const Tableau& tableau;
  const size_t stages, all;  // without and with those that only dense output needs
  T* const gy0;
  StepAdjoint<T> step;  // of the steps at hand
  PerSampleArithmetic<T> arithmetic;
  std::vector<AdjointSample> samples;  // those in the tile
  int64_t waiting, last;               // samples yet to come
  const int64_t* starts;   // the number of each sample's first step, and that of all steps
  std::vector<T> initial;  // gradients of the derivatives with which the thread's samples began
  InterruptPoll poll;

  PerSampleAdjoint(const Field<T>& field, const Frame& largest, const SamplePath<T>& path,
                   const T* of_ys, T* gy0, std::vector<T>* parameters, const int64_t* starts,
                   int64_t from, int64_t to, const InterruptPoll& poll)
      : path(path),
        of_ys(of_ys),
        tableau(*path.tableau),
        stages(tableau.stages.size()),
        all(stages + tableau.further.size()),
        gy0(gy0),
        step(field, largest, tableau, parameters),
        arithmetic(field, largest, all + 2),
        waiting(from),
        last(to),
        starts(starts),
        initial(size_t((to - from) * field.dim())),
        poll(poll) {}

  int64_t dim() const { return step.dim(); }
  AdjointSample& at(int64_t s) { return samples[size_t(s)]; }
  int64_t count() const { return int64_t(samples.size()); }
  const T* kept(int64_t n) const { return path.kept + 2 * n * dim(); }

  void put(T* x, int64_t s, const T* row) const {
    for (int64_t d = 0; d < dim(); ++d) x[step.frame.place(d, s, dim())] = row[d];
  }
  void zero(T* x, int64_t s) const {
    for (int64_t d = 0; d < dim(); ++d) x[step.frame.place(d, s, dim())] = 0;
  }
  void get(const T* x, int64_t s, T* row) const {
    for (int64_t d = 0; d < dim(); ++d) row[d] = x[step.frame.place(d, s, dim())];
  }

  double time(const AdjointSample& each) const {
    return path.times[each.index * path.outputs + each.next];
  }
  const T* upstream(int64_t output, int64_t index) const {
    return of_ys + (output * path.batch + index) * dim();
  }

  // The next sample that took steps into position s of the tile; whether there was one.
  bool admit(int64_t s) {
    for (; waiting < last; ++waiting) {
      if (starts[waiting] == starts[waiting + 1]) {
        std::copy_n(upstream(0, waiting), dim(), gy0 + waiting * dim());
        continue;
      }
      AdjointSample each{waiting, starts[waiting], starts[waiting + 1] - 1, path.outputs - 1,
                         path.direction[waiting]};
      const double end = path.t1[each.step];
      while (each.next > 0 && (time(each) - end) * each.direction > 0) --each.next;
      at(s) = each;
      zero(step.gy, s);
      zero(step.carried, s);
      ++waiting;
      return true;
    }
    return false;
  }

  void run(int64_t capacity) {
    const int64_t from = waiting;
    // Samples that only fill up vectors must be finite, and their gradients zero.
    for (T* x : {step.y, step.k[0], step.gy, step.carried}) step.clear(x);
    samples.resize(size_t(capacity));
    int64_t held = 0;
    while (held < capacity && admit(held)) ++held;
    samples.resize(size_t(held));
    while (held > 0 && !poll.requested()) {
      shrink(held);
      step_backward();
      // A VJP is two evaluations' work.
      poll.after(3 * int64_t(stages) * held * step.field.multiplications());
      for (int64_t s = held; s-- > 0;) {
        if (at(s).step-- > at(s).begin) continue;
        const int64_t index = at(s).index;
        get(step.gy, s, gy0 + index * dim());
        get(step.carried, s, initial.data() + (index - from) * dim());
        if (admit(s)) continue;
        leave(s, --held);
      }
    }
    initial_vjp(from, capacity);
  }

  // The sample in position s leaves, and the last one takes its position.
  void leave(int64_t s, int64_t end) {
    at(s) = at(end);
    samples.pop_back();
    for (T* x : {step.gy, step.carried}) {
      for (int64_t d = 0; d < dim(); ++d) {
        x[step.frame.place(d, s, dim())] = x[step.frame.place(d, end, dim())];
      }
      zero(x, end);
    }
  }

  // A tile no wider than so many samples need.
  void shrink(int64_t count) {
    const Frame before = step.frame;
    step.frame = make_frame(before.sample_major, count, before.lanes);
    if (step.frame.sample_major || step.frame.width() == before.width()) return;
    for (T* x : {step.gy, step.carried}) {
      for (int64_t d = 0; d < dim(); ++d) {
        std::copy_n(x + d * before.width(), step.frame.width(), x + d * step.frame.width());
      }
    }
    for (T* x : {step.y, step.k[0]}) step.clear(x);
  }

  template <class F>
  void add_weighted(F weight, T* to) {
    const std::vector<T*> one{step.output};
    arithmetic.combine(
        step.frame, count(), to, one, {0}, [&](int64_t s, size_t) { return weight(s); }, to);
  }

  // The step at hand of every sample.
  void step_backward() {
    for (int64_t s = 0; s < count(); ++s) {
      AdjointSample& each = at(s);
      const T* const row = kept(each.step);
      put(step.y, s, row);
      put(step.k[0], s, row + dim());
      each.t =
          each.step > each.begin ? path.t1[each.step - 1] : path.times[each.index * path.outputs];
      each.t1 = path.t1[each.step];
      each.h = each.t1 - each.t;
    }
    for (size_t i = 1; i < stages; ++i) take_stage(i, tableau.stages[i], tableau.times[i]);
    std::fill(step.has_direct.begin(), step.has_direct.end(), 0);
    copy_tile(step.frame.extent(dim()), step.carried, step.direct[stages - 1]);
    step.has_direct[stages - 1] = 1;
    take_outputs();
    step.used_further = false;
    for (size_t i = stages; i < all; ++i)
      step.used_further = step.used_further || step.has_direct[i];
    step.backward(true, [this](size_t j) { return gather(j); });
  }

  void take_stage(size_t i, const Weights& weights, double c) {
    arithmetic.combine(
        step.frame, count(), step.y, step.k, weights.stages,
        [&](int64_t s, size_t j) { return at(s).h * weights.values[j]; }, step.states[i]);
    step.record(i, arithmetic.times(count(), [&](int64_t s) {
      const AdjointSample& each = at(s);
      if (c == 1 && i < stages) return shifted<T>(each.t1, -1, each.direction);
      return T(each.t + c * each.h);
    }));
  }

  bool due(const AdjointSample& each) const {
    return each.next > 0 && (time(each) - each.t) * each.direction > 0;
  }

  // Outputs in (t, t1], at most one of each sample at a time: the state's gradient at t1 in `gy`,
  // the rest into `direct`, and what goes straight to the state at t into gx[all].
  void take_outputs() {
    step.clear(step.gx[all]);
    bool further = false;
    while (true) {
      bool any = false, inside = false;
      step.clear(step.output);
      for (int64_t s = 0; s < count(); ++s) {
        const AdjointSample& each = at(s);
        if (!due(each)) continue;
        any = true;
        inside = inside || time(each) != each.t1;
        put(step.output, s, upstream(each.next, each.index));
      }
      if (!any) return;
      const auto is_inside = [&](int64_t s) {
        const AdjointSample& each = at(s);
        return due(each) && time(each) != each.t1;
      };
      add_weighted([&](int64_t s) { return due(at(s)) && !is_inside(s) ? 1.0 : 0.0; }, step.gy);
      if (inside) {
        for (size_t i = stages; i < all && !further; ++i) {
          take_stage(i, tableau.further[i - stages], tableau.further_times[i - stages]);
        }
        further = true;
        add_weighted([&](int64_t s) { return is_inside(s) ? 1.0 : 0.0; }, step.gx[all]);
        for (const Polynomial& p : tableau.dense) {
          T* const to = step.direct[size_t(p.stage)];
          if (!step.has_direct[size_t(p.stage)]) step.clear(to);
          step.has_direct[size_t(p.stage)] = 1;
          add_weighted(
              [&](int64_t s) {
                const AdjointSample& each = at(s);
                return is_inside(s) ? dense_weight(p, each.t, each.t1, time(each)) : 0.0;
              },
              to);
        }
      }
      for (AdjointSample& each : samples) each.next -= due(each);
    }
  }

  // gk = the gradient of k_j, from outputs and from the stages after it; false if there is none.
  bool gather(size_t j) {
    const Weights& column = step.column(j);
    if (!step.has_direct[j] && column.stages.empty()) return false;
    step.sources = step.gx;
    if (!tableau.fsal) step.sources[all] = step.gy;
    arithmetic.combine(
        step.frame, count(), step.has_direct[j] ? step.direct[j] : nullptr, step.sources,
        column.stages, [&](int64_t s, size_t i) { return at(s).h * column.values[i]; }, step.gk);
    return true;
  }

  // The VJP of the initial derivatives of the thread's samples, a tile at a time.
  void initial_vjp(int64_t from, int64_t capacity) {
    std::vector<T> row(static_cast<size_t>(dim()));
    for (int64_t first = from, part; first < last; first += part) {
      part = std::min(capacity, last - first);
      step.frame = make_frame(step.frame.sample_major, part, step.frame.lanes);
      for (T* x : {step.states[0], step.gk}) step.clear(x);
      for (int64_t s = 0; s < part; ++s) {
        if (starts[first + s] == starts[first + s + 1]) continue;
        put(step.states[0], s, kept(starts[first + s]));
        put(step.gk, s, initial.data() + (first + s - from) * dim());
      }
      step.record(0, arithmetic.times(part, [&](int64_t s) {
        return T(path.times[(first + s) * path.outputs]);
      }));
      step.stage_vjp(0, step.gk);
      for (int64_t s = 0; s < part; ++s) {
        get(step.gx[0], s, row.data());
        T* const to = gy0 + (first + s) * dim();
        const T* const of_start = upstream(0, first + s);
        const bool moved = starts[first + s] != starts[first + s + 1];
        for (int64_t d = 0; d < dim() && moved; ++d) to[d] += row[size_t(d)] + of_start[d];
      }
    }
  }
};

}  // namespace

template <class T>
bool sample_gradient(const Field<T>& field, const SamplePath<T>& path, const T* of_ys, T* gy0,
                     std::vector<std::vector<T>>* parameters, int threads,
                     const Parallel& parallel) {
  const int64_t batch = path.batch, lanes = field.lanes;
  std::vector<int64_t> starts(size_t(batch) + 1);
  for (int64_t b = 0; b < batch; ++b) {
    starts[size_t(b) + 1] = starts[size_t(b)] + path.accepted[b];
  }
  Interruption interruption;
  const auto prepare = [&](int count) {
    interruption.begin(count);
    if (!parameters) return;
    parameters->assign(size_t(count), std::vector<T>(size_t(field.parameter_numbers())));
  };
  // Which thread takes which samples is fixed, so that sums repeat bit for bit; each gets about the
  // same number of steps, and the initial derivatives count like one.
  const auto bound = [&](int thread, int count) {
    const int64_t share = (starts.back() + batch) * thread / count;
    int64_t b = 0;
    while (b < batch && starts[size_t(b)] + b < share) ++b;
    return thread == count ? batch : b;
  };
  const auto body = [&](int thread, int count) {
    const int64_t from = bound(thread, count), to = bound(thread + 1, count);
    InterruptPoll poll(interruption, thread == 0);
    if (from == to) return poll.finish();
    const int64_t capacity = std::min(field.tile(to - from), to - from);
    PerSampleAdjoint<T> adjoint(field, field.frame(capacity), path, of_ys, gy0,
                                parameters ? &(*parameters)[size_t(thread)] : nullptr,
                                starts.data(), from, to, poll);
    adjoint.run(capacity);
    adjoint.poll.finish();
  };
  threads = field.sample_major ? 1 : int(std::min<int64_t>(threads, (batch + lanes - 1) / lanes));
  if (threads <= 1) {
    prepare(1);
    body(0, 1);
  } else {
    parallel(threads, prepare, body);
  }
  if (parameters) sum_parts(*parameters);
  return !interruption.requested();
}

template bool sample_gradient<float>(const Field<float>&, const SamplePath<float>&, const float*,
                                     float*, std::vector<std::vector<float>>*, int,
                                     const Parallel&);
template bool sample_gradient<double>(const Field<double>&, const SamplePath<double>&,
                                      const double*, double*, std::vector<std::vector<double>>*,
                                      int, const Parallel&);

}  // namespace fastnode
