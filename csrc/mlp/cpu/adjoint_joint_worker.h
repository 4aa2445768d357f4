// The steps of a solve followed backwards: their stages are computed again from the states that it
// kept. Sizes of steps are constants, as in fastnode.engines.reference.adaptive.
#pragma once

#include "kernels/rk/rk_error.h"
#include "mlp/cpu/adjoint_joint.h"
#include "mlp/cpu/revolve.h"
#include "mlp/cpu/step_adjoint.h"

namespace fastnode {

// One thread's part, tile by tile. Tiles do not meet on the way back.
template <class T>
struct Adjoint : StepBack<T> {
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
  using StepBack<T>::scratch;
  using StepBack<T>::sources;
  using StepBack<T>::stages;
  using StepBack<T>::states;
  using StepBack<T>::tableau;
  using StepBack<T>::take_tile;
  using StepBack<T>::tapes;
  using StepBack<T>::used_further;
  using StepBack<T>::y;

  const MlpPath<T>& path;
  const MlpUpstream<T>& upstream;
  const int64_t batch;
  T* const gy0;
  std::vector<double>* const rates;
  TileArithmetic<T> arithmetic;
  const double direction;
  int64_t first = 0;
  // Where stages are computed again, and whether their slopes are needed, which no tape holds.
  std::vector<T*> own_states, own_tapes;
  const bool needs_slopes;
  std::vector<T*> slots;  // states and, of adaptive steps, slopes, where nothing was kept

  Adjoint(const MlpField<T>& with_gradients, const Frame& largest, int64_t samples,
          const MlpPath<T>& taken, const MlpUpstream<T>& up, T* down, std::vector<T>* sums,
          std::vector<double>* rate)
      : StepBack<T>(with_gradients, largest, *taken.tableau, sums, 2 * taken.slot_count()),
        path(taken),
        upstream(up),
        batch(samples),
        gy0(down),
        rates(rate),
        arithmetic(field, largest, stages + 2),
        direction(path.direction()),
        own_states(states),
        own_tapes(tapes),
        needs_slopes(rates || upstream.errors || (all > stages && path.times.size() > 2)),
        slots(size_t(2 * path.slot_count())) {
    for (T*& each : slots) each = take_tile();
  }

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
  void add_scaled(const T* x, double factor, T* to) {
    T* const one = const_cast<T*>(x);
    arithmetic.combine(frame, to, &one, kFirstSlope, factor, to);
  }

  void record(size_t i, T time) { StepBack<T>::record(i, arithmetic.times(frame, time)); }

  T first_time(double t) const { return shifted<T>(t, path.perturb ? 1 : 0, direction); }

  // The time of stage i after the first.
  T time_of(size_t i, double t, double t1) const {
    const double c = tableau.times[i];
    if (c == 1) return shifted<T>(t1, path.adaptive || path.perturb ? -1 : 0, direction);
    return T(t + c * (t1 - t));
  }

  bool is_taped(size_t n) const {
    return path.tape && int64_t(n) < path.tape->steps() && !needs_slopes;
  }

  // The stages of step n as the solve wrote them down, or memory for them.
  void find_stages(size_t n) {
    for (size_t i = path.adaptive ? 1 : 0; i < stages; ++i) {
      if (is_taped(n)) {
        const int64_t tile = first / tile_width(frame.by_sample, batch, frame.lanes);
        const auto at = path.tape->template stage<T>(int64_t(n), tile, int64_t(i), frame);
        states[i] = at.state;
        tapes[i] = at.record;
      } else {
        states[i] = own_states[i];
        tapes[i] = own_tapes[i];
      }
    }
  }

  void recompute(double t, double t1) {
    if (!path.adaptive) {
      copy_tile(frame.extent(dim()), y, states[0]);
      record(0, first_time(t));
    }
    for (size_t i = 1; i < stages; ++i) {
      arithmetic.combine(frame, y, k.data(), tableau.stages[i], t1 - t, states[i]);
      record(i, time_of(i, t, t1));
    }
  }

  void recompute_further(double t, double t1) {
    for (size_t i = stages; i < all; ++i) {
      arithmetic.combine(frame, y, k.data(), tableau.further[i - stages], t1 - t, states[i]);
      record(i, T(t + tableau.further_times[i - stages] * (t1 - t)));
    }
  }

  void add_direct(size_t stage, const T* g, double factor) {
    if (!has_direct[stage]) clear(direct[stage]);
    has_direct[stage] = 1;
    add_scaled(g, factor, direct[stage]);
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
        arithmetic.combine(frame, nullptr, k.data(),
                           dense_derivative_weights(tableau, (time - t) / h), 1, gk);
        (*rates)[next] += dot(frame, output, gk, dim());
      }
      if (time == t1) {
        add(output, gy);
        continue;
      }
      add(output, gx[all]);
      const Weights weights = weights_at((time - t) / h);
      for (size_t j = 0; j < weights.stages.size(); ++j) {
        add_direct(size_t(weights.stages[j]), output, h * weights.values[j]);
      }
    }
  }

  // gk = what reaches the slope of stage j: directly, and by the stages after it, if anything.
  bool gather(size_t j, double h) {
    const Weights& column = this->column(j);
    if (!has_direct[j] && column.stages.empty()) return false;
    sources = gx;
    if (!tableau.fsal) sources[all] = gy;
    arithmetic.combine(frame, has_direct[j] ? direct[j] : nullptr, sources.data(), column, h, gk);
    return true;
  }

  // The state and the slope at the beginning of step n, which were kept.
  void load_step(size_t n) {
    const int64_t row = batch * dim();
    const T* const from = path.kept + int64_t(n) * (path.adaptive ? 2 : 1) * row + first * dim();
    arithmetic.load(frame, from, y);
    if (path.adaptive) arithmetic.load(frame, from + row, k[0]);
  }

  // What comes from the step's local error, e = h sum_j w_j k_j in units of the tolerances, the
  // root mean square over all samples.
  void take_error(size_t n, double h) {
    if (path.errors[n] == 0) return;
    const double factor = upstream.errors[n] / (double(batch * dim()) * path.errors[n]);
    const T* y1 = states[stages - 1];
    if (!tableau.fsal) {
      arithmetic.combine(frame, y, k.data(), tableau.solution, h, output);
      y1 = output;
    }
    arithmetic.combine(frame, nullptr, k.data(), tableau.error, h, gk);
    // What only fills vectors up stays as it is: nothing of it may reach the parameters.
    const Extent extent = frame.extent(dim());
    const int64_t valid = frame.by_sample ? dim() : frame.samples;
    for (int64_t r = 0; r < extent.rows; ++r) {
      const int64_t at = r * extent.stride;
      for (int64_t i = at; i < at + valid; ++i) {
        const ErrorBack<T> back =
            error_back(gk[i], y[i], y1[i], T(path.rtol), T(path.atol), T(factor));
        gk[i] = back.error;
        gx[all][i] += back.y0;
        gy[i] += back.y1;
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

  // Step n, with the state and the slope at its beginning in place.
  void step_back(size_t n, size_t& next) {
    const double t = path.edges[n], t1 = path.edges[n + 1], h = t1 - t;
    if (!is_taped(n)) recompute(t, t1);
    std::fill(has_direct.begin(), has_direct.end(), 0);
    if (path.adaptive && n + 1 < size_t(path.steps())) add_direct(stages - 1, carried, 1);
    take_outputs(t, t1, next);
    if (upstream.errors && upstream.errors[n] != 0) take_error(n, h);
    used_further = false;
    for (size_t i = stages; i < all; ++i) used_further = used_further || has_direct[i];
    this->follow_step(path.adaptive, [&](size_t j) { return gather(j, h); });
  }

  void tile_back(int64_t start, const Frame& shape) {
    first = start;
    frame = shape;
    clear(gy);
    clear(carried);
    size_t next = path.times.size() - 1;
    if (path.kept) {
      for (size_t n = size_t(path.steps()); n-- > 0;) {
        find_stages(n);
        // The first state is needed after the first step.
        if (n == 0 || !is_taped(n)) load_step(n);
        step_back(n, next);
      }
    } else {
      Replay<Adjoint>{*this}.back(next);
    }
    if (path.adaptive && !path.constant_slope) {
      // y is still the state at which the first step began.
      copy_tile(frame.extent(dim()), y, states[0]);
      record(0, T(path.edges[0]));
      follow(0, carried);
      add(gx[0], gy);
    }
    load_gradient(0, output);
    add(output, gy);
    arithmetic.store(frame, gy, gy0 + first * dim());
  }
};

}  // namespace fastnode
