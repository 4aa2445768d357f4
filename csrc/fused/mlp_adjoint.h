// The steps of a solve followed backwards: their stages are computed again from the states that it
// kept. Sizes of steps are constants, as in fastnode.engines.adaptive.
#pragma once

#include "fused/mlp_gradient.h"
#include "fused/worker.h"

namespace fastnode {

// One thread's part, tile by tile. Tiles do not meet on the way back.
template <class T>
struct Adjoint {
  const MlpField<T>& field;
  const MlpPath<T>& path;
  const MlpUpstream<T>& upstream;
  const Tableau& tableau;
  const int64_t batch;
  T* const gy0;
  std::vector<T>* const parameters;
  std::vector<double>* const rates;

  TileArithmetic<T> arithmetic;
  const double direction;
  const size_t stages, all;
  int64_t tape_size = 0, first = 0;
  Frame frame;
  Arena memory;
  // Of the step at hand: states and slopes of its stages, what comes back from each, and what
  // reaches their slopes from outside of the step.
  std::vector<T*> states, k, gx, direct, sources;
  std::vector<char> has_direct;
  // Without and with the stages that only dense output needs.
  std::vector<Weights> columns[2];
  T *tapes = nullptr, *scratch = nullptr, *gy = nullptr, *gk = nullptr, *carried = nullptr,
    *output = nullptr, *y = nullptr;
  bool used_further = false;

  Adjoint(const MlpField<T>& with_gradients, const Frame& largest, int64_t samples,
          const MlpPath<T>& taken, const MlpUpstream<T>& up, T* down, std::vector<T>* sums,
          std::vector<double>* rate)
      : field(with_gradients),
        path(taken),
        upstream(up),
        tableau(*taken.tableau),
        batch(samples),
        gy0(down),
        parameters(sums),
        rates(rate),
        arithmetic(field, largest, int64_t(tableau.stages.size()) + 2),
        direction(path.direction()),
        stages(tableau.stages.size()),
        all(stages + tableau.further.size()),
        frame(largest),
        states(all),
        k(all),
        gx(all + 1),
        direct(all),
        has_direct(all),
        columns{make_columns(stages), make_columns(all)} {
    const int64_t size = frame.front() + frame.size(dim());
    tape_size = round_up(field.tape(frame), 64 / int64_t(sizeof(T)));
    memory.reserve(int64_t(4 * all + 6) * Arena::bytes<T>(size) +
                       int64_t(all) * Arena::bytes<T>(tape_size) +
                       Arena::bytes<T>(field.gradient_scratch(frame)),
                   frame.by_sample);
    const auto state = [&] { return memory.take<T>(size) + frame.front(); };
    for (auto* each : {&states, &k, &gx, &direct}) {
      for (T*& x : *each) x = state();
    }
    for (T** each : {&gy, &gk, &carried, &output, &y}) *each = state();
    tapes = memory.take<T>(int64_t(all) * tape_size);
    scratch = memory.take<T>(field.gradient_scratch(frame));
  }

  int64_t dim() const { return field.dim(); }

  void clear(T* x) const { std::fill_n(x, frame.size(dim()), T(0)); }

  // The gradient of an output; nothing in what only fills vectors.
  void load_gradient(size_t time, T* to) const {
    if (!upstream.ys) return clear(to);
    arithmetic.load(frame, upstream.ys + (int64_t(time) * batch + first) * dim(), to);
    if (frame.by_sample || frame.samples == frame.width()) return;
    for (int64_t d = 0; d < dim(); ++d) {
      std::fill(to + d * frame.width() + frame.samples, to + (d + 1) * frame.width(), T(0));
    }
  }

  // to += factor x
  void add(const T* x, double factor, T* to) {
    arithmetic.combine(frame, to, {const_cast<T*>(x)}, {{0}, {1.0}}, factor, to);
  }

  void record(size_t i, T time) {
    field.record(frame, arithmetic.times(frame, time), states[i], tapes + int64_t(i) * tape_size,
                 k[i]);
  }

  // gx[i] = J^T g of stage i.
  void follow(size_t i, T* g) {
    field.gradient(frame, states[i], tapes + int64_t(i) * tape_size, g, scratch, gx[i],
                   parameters ? parameters->data() : nullptr);
  }

  void recompute(double t, double t1) {
    const double h = t1 - t;
    if (!path.adaptive) {
      copy_tile(frame.extent(dim()), y, states[0]);
      record(0, shifted<T>(t, path.perturb ? 1 : 0, direction));
    }
    const bool near = path.adaptive || path.perturb;
    for (size_t i = 1; i < stages; ++i) {
      arithmetic.combine(frame, y, k, tableau.stages[i], h, states[i]);
      const double c = tableau.times[i];
      record(i, c == 1 ? shifted<T>(t1, near ? -1 : 0, direction) : T(t + c * h));
    }
  }

  void recompute_further(double t, double t1) {
    for (size_t i = stages; i < all; ++i) {
      arithmetic.combine(frame, y, k, tableau.further[i - stages], t1 - t, states[i]);
      record(i, T(t + tableau.further_times[i - stages] * (t1 - t)));
    }
  }

  void add_direct(size_t stage, const T* g, double factor) {
    if (!has_direct[stage]) clear(direct[stage]);
    has_direct[stage] = 1;
    add(g, factor, direct[stage]);
  }

  // Weights of an output inside a step in units of the step.
  Weights weights_at(double x) const {
    if (path.adaptive) return dense_weights(tableau, x);
    Weights weights = tableau.solution;
    for (double& each : weights.values) each *= x;
    return weights;
  }

  // Outputs in (t, t1]: the state's gradient at t1 in `gy`, the rest into `direct`, and what goes
  // straight to the state at t into gx[all].
  void take_outputs(double t, double t1, size_t& next) {
    const double h = t1 - t;
    bool further = false;
    clear(gx[all]);
    for (; next > 0 && (path.times[next] - t) * direction > 0; --next) {
      const double time = path.times[next];
      load_gradient(next, output);
      if (!further && all > stages && (time != t1 || rates)) {
        recompute_further(t, t1);
        further = true;
      }
      if (rates) {
        arithmetic.combine(frame, nullptr, k, slope_weights(tableau, (time - t) / h), 1, gk);
        (*rates)[next] += dot(frame, output, gk, dim());
      }
      if (time == t1) {
        add(output, 1, gy);
        continue;
      }
      add(output, 1, gx[all]);
      const Weights weights = weights_at((time - t) / h);
      for (size_t j = 0; j < weights.stages.size(); ++j) {
        add_direct(size_t(weights.stages[j]), output, h * weights.values[j]);
      }
    }
  }

  // Weights in the stages after it, and in the solution, of each stage's slope.
  std::vector<Weights> make_columns(size_t rows) const {
    std::vector<Weights> columns(all);
    const auto add_row = [&](const Weights& row, size_t i) {
      for (size_t n = 0; n < row.stages.size(); ++n) {
        Weights& column = columns[size_t(row.stages[n])];
        column.stages.push_back(int(i));
        column.values.push_back(row.values[n]);
      }
    };
    for (size_t i = 0; i < rows; ++i) {
      add_row(i < stages ? tableau.stages[i] : tableau.further[i - stages], i);
    }
    if (!tableau.fsal) add_row(tableau.solution, all);
    return columns;
  }

  // gk = what reaches the slope of stage j: directly, and by the stages after it, if anything.
  bool gather(size_t j, double h) {
    const Weights& column = columns[used_further][j];
    if (!has_direct[j] && column.stages.empty()) return false;
    sources = gx;
    if (!tableau.fsal) sources[all] = gy;
    arithmetic.combine(frame, has_direct[j] ? direct[j] : nullptr, sources, column, h, gk);
    return true;
  }

  // The state and the slope at the beginning of step n.
  void load_step(size_t n) {
    const int64_t row = batch * dim();
    const T* const from = path.kept + int64_t(n) * (path.adaptive ? 2 : 1) * row + first * dim();
    arithmetic.load(frame, from, y);
    if (path.adaptive) arithmetic.load(frame, from + row, k[0]);
  }

  // What comes from the step's local error E = rms(e / s), e = h sum_j w_j k_j, s = atol + rtol
  // max(|y|, |y1|), the root mean square over all samples: dE = e / (s^2 N E) (de - e / s ds).
  void take_error(size_t n, double h) {
    if (path.errors[n] == 0) return;
    const double factor = upstream.errors[n] / (double(batch * dim()) * path.errors[n]);
    const T* y1 = states[stages - 1];
    if (!tableau.fsal) {
      arithmetic.combine(frame, y, k, tableau.solution, h, output);
      y1 = output;
    }
    arithmetic.combine(frame, nullptr, k, tableau.error, h, gk);
    for (int64_t s = 0; s < frame.samples; ++s) {
      for (int64_t d = 0; d < dim(); ++d) {
        const int64_t i = frame.place(d, s, dim());
        const double before = std::abs(double(y[i])), after = std::abs(double(y1[i]));
        const double scale = path.atol + path.rtol * std::max(before, after);
        const double ratio = double(gk[i]) / scale, back = factor * ratio / scale;
        const double of_scale = -back * ratio * path.rtol;
        if (before > after) {
          gx[all][i] += T(std::copysign(of_scale, of_scale * double(y[i])));
        } else {
          gy[i] += T(std::copysign(of_scale, of_scale * double(y1[i])));
        }
        gk[i] = T(back);
      }
    }
    if (!frame.by_sample) {
      for (int64_t d = 0; d < dim(); ++d) {
        std::fill(gk + d * frame.width() + frame.samples, gk + (d + 1) * frame.width(), T(0));
      }
    }
    for (size_t j = 0; j < tableau.error.stages.size(); ++j) {
      add_direct(size_t(tableau.error.stages[j]), gk, h * tableau.error.values[j]);
    }
  }

  void step_back(size_t n, size_t& next) {
    const double t = path.edges[n], t1 = path.edges[n + 1], h = t1 - t;
    load_step(n);
    recompute(t, t1);
    std::fill(has_direct.begin(), has_direct.end(), 0);
    if (path.adaptive && n + 1 < size_t(path.steps())) add_direct(stages - 1, carried, 1);
    take_outputs(t, t1, next);
    if (upstream.errors && upstream.errors[n] != 0) take_error(n, h);
    used_further = false;
    for (size_t i = stages; i < all; ++i) used_further = used_further || has_direct[i];
    std::vector<T*> sum{gy, gx[all]};
    for (size_t i = used_further ? all : stages; i-- > (path.adaptive ? 1 : 0);) {
      // Nothing follows the last slope of the last step.
      if (gather(i, h)) {
        follow(i, gk);
      } else {
        clear(gx[i]);
      }
      // The state of the last stage is the one at the end of the step.
      if (tableau.fsal && i == stages - 1) {
        add(gy, 1, gx[i]);
        sum[0] = gx[i];
      } else {
        sum.push_back(gx[i]);
      }
    }
    if (path.adaptive) {
      if (!gather(0, h)) clear(gk);
      std::swap(gk, carried);
    }
    Weights ones;
    for (size_t i = 0; i < sum.size(); ++i) {
      ones.stages.push_back(int(i));
      ones.values.push_back(1);
    }
    arithmetic.combine(frame, nullptr, sum, ones, 1, gk);
    std::swap(gk, gy);
  }

  void tile_back(int64_t start, const Frame& shape) {
    first = start;
    frame = shape;
    clear(gy);
    clear(carried);
    size_t next = path.times.size() - 1;
    for (size_t n = size_t(path.steps()); n-- > 0;) step_back(n, next);
    if (path.adaptive) {
      // y is still the state at which the first step began.
      copy_tile(frame.extent(dim()), y, states[0]);
      record(0, T(path.edges[0]));
      follow(0, carried);
      add(gx[0], 1, gy);
    }
    load_gradient(0, output);
    add(output, 1, gy);
    arithmetic.store(frame, gy, gy0 + first * dim());
  }
};

}  // namespace fastnode
