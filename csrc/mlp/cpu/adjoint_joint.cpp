// The steps of a solve in reverse order: their stages are recomputed from the states that it kept.
// Step sizes are constants, as in fastnode.engines.reference.adaptive.
#include "mlp/cpu/adjoint_joint.h"

#include <deque>

#include "kernels/rk/rk_error.h"
#include "mlp/cpu/revolve.h"
#include "mlp/cpu/step_adjoint.h"

namespace fastnode {
namespace {

// One thread's part of the backward pass, tile by tile: no tile needs another.
template <class T>
struct Adjoint {
  const MlpPath<T>& path;
  const MlpUpstream<T>& upstream;
  const Tableau& tableau;
  const size_t stages, all;  // without and with those that only dense output needs
  const int64_t batch;
  T* const gy0;
  std::vector<double>* const rates;
  const double direction;
  StepAdjoint<T> step;  // of the step and the tile at hand
  TileArithmetic<T> arithmetic;
  int64_t first = 0;  // sample of the tile
  // Where stages are recomputed, and whether stage derivatives are needed, which no tape holds.
  const std::vector<T*> own_states, own_tapes;
  const bool needs_derivatives;
  // States and, of adaptive steps, derivatives at which steps begin, where the solve kept none.
  std::vector<T*> slots;
  InterruptPoll poll;

  Adjoint(const Field<T>& field, const Frame& largest, int64_t batch, const MlpPath<T>& path,
          const MlpUpstream<T>& upstream, T* gy0, std::vector<T>* parameters,
          std::vector<double>* rates, const InterruptPoll& poll)
      : path(path),
        upstream(upstream),
        tableau(*path.tableau),
        stages(tableau.stages.size()),
        all(stages + tableau.further.size()),
        batch(batch),
        gy0(gy0),
        rates(rates),
        direction(path.direction()),
        step(field, largest, tableau, parameters, 2 * path.slot_count()),
        arithmetic(field, largest, stages + 2),
        own_states(step.states),
        own_tapes(step.tapes),
        needs_derivatives(rates || upstream.errors || (all > stages && path.times.size() > 2)),
        slots(size_t(2 * path.slot_count())),
        poll(poll) {
    for (T*& each : slots) each = step.take_tile();
  }

  int64_t dim() const { return step.dim(); }

  // The gradient of an output; zero for samples that only fill up vectors.
  void load_gradient(size_t time, T* to) const {
    if (!upstream.ys) return step.clear(to);
    arithmetic.load(step.frame, upstream.ys + (int64_t(time) * batch + first) * dim(), to);
    if (step.frame.sample_major || step.frame.samples == step.frame.width()) return;
    for (int64_t d = 0; d < dim(); ++d) {
      std::fill(to + d * step.frame.width() + step.frame.samples, to + (d + 1) * step.frame.width(),
                T(0));
    }
  }

  // to += factor x
  void add_scaled(const T* x, double factor, T* to) {
    T* const one = const_cast<T*>(x);
    arithmetic.combine(step.frame, to, &one, kFirst, factor, to);
  }

  // After an evaluation, or a VJP of two evaluations' work.
  void look_up(int64_t evaluations) {
    poll.after(evaluations * step.field.multiplications() * step.frame.samples);
  }

  void record(size_t i, T time) {
    step.record(i, arithmetic.times(step.frame, time));
    look_up(1);
  }

  T first_time(double t) const { return shifted<T>(t, path.perturb ? 1 : 0, direction); }

  // The time of stage i after the first.
  T time_of(size_t i, double t, double t1) const {
    const double c = tableau.times[i];
    if (c == 1) return shifted<T>(t1, path.adaptive || path.perturb ? -1 : 0, direction);
    return T(t + c * (t1 - t));
  }

  bool is_taped(size_t n) const {
    return path.tape && int64_t(n) < path.tape->steps() && !needs_derivatives;
  }

  // The stages of step n on the tape, or memory to recompute them in.
  void find_stages(size_t n) {
    for (size_t i = path.adaptive ? 1 : 0; i < stages; ++i) {
      if (is_taped(n)) {
        const int64_t tile = first / step.field.tile(batch);
        const auto at = path.tape->template stage<T>(int64_t(n), tile, int64_t(i), step.frame);
        step.states[i] = at.state;
        step.tapes[i] = at.record;
      } else {
        step.states[i] = own_states[i];
        step.tapes[i] = own_tapes[i];
      }
    }
  }

  void recompute(double t, double t1) {
    if (!path.adaptive) {
      copy_tile(step.frame.extent(dim()), step.y, step.states[0]);
      record(0, first_time(t));
    }
    for (size_t i = 1; i < stages; ++i) {
      arithmetic.combine(step.frame, step.y, step.k.data(), tableau.stages[i], t1 - t,
                         step.states[i]);
      record(i, time_of(i, t, t1));
    }
  }

  void recompute_further(double t, double t1) {
    for (size_t i = stages; i < all; ++i) {
      arithmetic.combine(step.frame, step.y, step.k.data(), tableau.further[i - stages], t1 - t,
                         step.states[i]);
      record(i, T(t + tableau.further_times[i - stages] * (t1 - t)));
    }
  }

  void add_direct(size_t stage, const T* g, double factor) {
    if (!step.has_direct[stage]) step.clear(step.direct[stage]);
    step.has_direct[stage] = 1;
    add_scaled(g, factor, step.direct[stage]);
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
    step.clear(step.gx[all]);
    for (; next > 0 && (path.times[next] - t) * direction > 0; --next) {
      const double time = path.times[next];
      load_gradient(next, step.output);
      if (!further && all > stages && (time != t1 || rates)) {
        recompute_further(t, t1);
        further = true;
      }
      if (rates) {
        arithmetic.combine(step.frame, nullptr, step.k.data(),
                           dense_derivative_weights(tableau, (time - t) / h), 1, step.gk);
        (*rates)[next] += dot(step.frame, step.output, step.gk, dim());
      }
      if (time == t1) {
        step.add(step.output, step.gy);
        continue;
      }
      step.add(step.output, step.gx[all]);
      const Weights weights = weights_at((time - t) / h);
      for (size_t j = 0; j < weights.stages.size(); ++j) {
        add_direct(size_t(weights.stages[j]), step.output, h * weights.values[j]);
      }
    }
  }

  // gk = the gradient of k_j, from outputs and from the stages after it; false if there is none.
  bool gather(size_t j, double h) {
    const Weights& column = step.column(j);
    if (!step.has_direct[j] && column.stages.empty()) return false;
    step.sources = step.gx;
    if (!tableau.fsal) step.sources[all] = step.gy;
    arithmetic.combine(step.frame, step.has_direct[j] ? step.direct[j] : nullptr,
                       step.sources.data(), column, h, step.gk);
    return true;
  }

  // The state and the derivative at the beginning of step n, which the solve kept.
  void load_step(size_t n) {
    const int64_t row = batch * dim();
    const T* const from = path.kept + int64_t(n) * (path.adaptive ? 2 : 1) * row + first * dim();
    arithmetic.load(step.frame, from, step.y);
    if (path.adaptive) arithmetic.load(step.frame, from + row, step.k[0]);
  }

  // The gradient of the step's local error: e = h sum_j w_j k_j in units of the tolerances, the
  // root mean square over all samples.
  void take_error(size_t n, double h) {
    if (path.errors[n] == 0) return;
    const double factor = upstream.errors[n] / (double(batch * dim()) * path.errors[n]);
    const T* y1 = step.states[stages - 1];
    if (!tableau.fsal) {
      arithmetic.combine(step.frame, step.y, step.k.data(), tableau.solution, h, step.output);
      y1 = step.output;
    }
    arithmetic.combine(step.frame, nullptr, step.k.data(), tableau.error, h, step.gk);
    // Samples that only fill up vectors are left out: they must not reach the parameters.
    const Extent extent = step.frame.extent(dim());
    const int64_t valid = step.frame.sample_major ? dim() : step.frame.samples;
    for (int64_t r = 0; r < extent.rows; ++r) {
      const int64_t at = r * extent.stride;
      for (int64_t i = at; i < at + valid; ++i) {
        const ErrorBack<T> back =
            error_back(step.gk[i], step.y[i], y1[i], T(path.rtol), T(path.atol), T(factor));
        step.gk[i] = back.error;
        step.gx[all][i] += back.y0;
        step.gy[i] += back.y1;
      }
    }
    if (!step.frame.sample_major) {
      for (int64_t d = 0; d < dim(); ++d) {
        std::fill(step.gk + d * step.frame.width() + step.frame.samples,
                  step.gk + (d + 1) * step.frame.width(), T(0));
      }
    }
    for (size_t j = 0; j < tableau.error.stages.size(); ++j) {
      add_direct(size_t(tableau.error.stages[j]), step.gk, h * tableau.error.values[j]);
    }
  }

  // Step n; y and k_0 hold the state and the derivative at its beginning.
  void step_backward(size_t n, size_t& next) {
    const double t = path.edges[n], t1 = path.edges[n + 1], h = t1 - t;
    if (!is_taped(n)) recompute(t, t1);
    std::fill(step.has_direct.begin(), step.has_direct.end(), 0);
    if (path.adaptive && n + 1 < size_t(path.steps())) add_direct(stages - 1, step.carried, 1);
    take_outputs(t, t1, next);
    if (upstream.errors && upstream.errors[n] != 0) take_error(n, h);
    step.used_further = false;
    for (size_t i = stages; i < all; ++i)
      step.used_further = step.used_further || step.has_direct[i];
    step.backward(path.adaptive, [&](size_t j) {
      look_up(2);
      return gather(j, h);
    });
  }

  void tile_backward(int64_t start, const Frame& shape) {
    first = start;
    step.frame = shape;
    step.clear(step.gy);
    step.clear(step.carried);
    size_t next = path.times.size() - 1;
    if (path.kept) {
      for (size_t n = size_t(path.steps()); n-- > 0 && !poll.requested();) {
        find_stages(n);
        // The first state is needed after the first step.
        if (n == 0 || !is_taped(n)) load_step(n);
        step_backward(n, next);
      }
    } else {
      Replay<Adjoint>{*this}.backward(next);
    }
    if (path.adaptive && !path.constant_k1) {
      // y is still the initial state.
      copy_tile(step.frame.extent(dim()), step.y, step.states[0]);
      record(0, T(path.edges[0]));
      step.stage_vjp(0, step.carried);
      step.add(step.gx[0], step.gy);
    }
    load_gradient(0, step.output);
    step.add(step.output, step.gy);
    arithmetic.store(step.frame, step.gy, gy0 + first * dim());
  }
};

}  // namespace

template <class T>
bool mlp_gradient(const Field<T>& field, int64_t batch, const MlpPath<T>& path,
                  const MlpUpstream<T>& upstream, const MlpGradients<T>& gradients, int threads,
                  const Parallel& parallel) {
  const int64_t width = field.tile(batch);
  const int64_t tiles = (batch + width - 1) / width;
  const auto frame = [&](int64_t tile) {
    return field.frame(std::min(width, batch - tile * width));
  };
  Interruption interruption;
  std::vector<std::vector<double>> all_rates;
  std::deque<Adjoint<T>> adjoints;
  std::vector<std::vector<T>>* const parameters = gradients.parameters;
  const auto prepare = [&](int count) {
    if (parameters) {
      parameters->assign(size_t(count), std::vector<T>(size_t(field.parameter_numbers())));
    }
    interruption.begin(count);
    all_rates.assign(size_t(count), std::vector<double>(path.times.size()));
    // One after the other, as the workers of a solve are.
    for (size_t i = 0; i < size_t(count); ++i) {
      adjoints.emplace_back(field, frame(0), batch, path, upstream, gradients.y0,
                            parameters ? &(*parameters)[i] : nullptr,
                            gradients.rates ? &all_rates[i] : nullptr,
                            InterruptPoll(interruption, i == 0));
    }
  };
  const auto body = [&](int thread, int count) {
    Adjoint<T>& adjoint = adjoints[size_t(thread)];
    const int64_t end = tiles * (thread + 1) / count;
    for (int64_t i = tiles * thread / count; i < end && !interruption.requested(); ++i) {
      adjoint.tile_backward(i * width, frame(i));
    }
    adjoint.poll.finish();
  };
  threads = int(std::min<int64_t>(threads, tiles));
  if (threads <= 1) {
    prepare(1);
    body(0, 1);
  } else {
    parallel(threads, prepare, body);
  }
  if (parameters) sum_parts(*parameters);
  if (gradients.rates) {
    std::fill_n(gradients.rates, path.times.size(), 0.0);
    for (const std::vector<double>& part : all_rates) {
      for (size_t j = 0; j < part.size(); ++j) gradients.rates[j] += part[j];
    }
  }
  return !interruption.requested();
}

template bool mlp_gradient<float>(const Field<float>&, int64_t, const MlpPath<float>&,
                                  const MlpUpstream<float>&, const MlpGradients<float>&, int,
                                  const Parallel&);
template bool mlp_gradient<double>(const Field<double>&, int64_t, const MlpPath<double>&,
                                   const MlpUpstream<double>&, const MlpGradients<double>&, int,
                                   const Parallel&);

}  // namespace fastnode
