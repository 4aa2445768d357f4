// The exact derivative of the steps that a solve took: its stages are computed again from the
// states that it kept, and followed backwards. Sizes of steps are constants, as in
// fastnode.engines.adaptive.
#include "fused/worker.h"

namespace fastnode {

// One thread's part. Tiles do not meet on the way back.
template <class T>
struct MlpSolve<T>::Adjoint {
  MlpSolve& solve;
  const MlpOptions& options;
  const Tableau& tableau;
  const MlpField<T>& field;
  const MlpTrace& trace;
  const T* const upstream;
  T* const gy0;
  std::vector<T>* const parameters;
  std::vector<double>* const rates;

  TileArithmetic<T> arithmetic;
  const double direction;
  const size_t stages, all;
  int64_t tape_size = 0;
  Arena memory;
  std::vector<T*> states, gx, direct;
  std::vector<char> has_direct;
  T *tapes = nullptr, *scratch = nullptr, *gy = nullptr, *gk = nullptr, *carried = nullptr,
    *output = nullptr;

  Adjoint(MlpSolve& whole, const MlpField<T>& with_gradients, const MlpTrace& record, const T* up,
          T* down, std::vector<T>* sums, std::vector<double>* rate)
      : solve(whole),
        options(whole.options_),
        tableau(*options.tableau),
        field(with_gradients),
        trace(record),
        upstream(up),
        gy0(down),
        parameters(sums),
        rates(rate),
        arithmetic(field, whole.tiles_.front().frame, int64_t(tableau.stages.size()) + 2),
        direction(options.direction()),
        stages(tableau.stages.size()),
        all(stages + tableau.further.size()),
        states(all),
        gx(all + 1),
        direct(all),
        has_direct(all) {
    const Frame& frame = whole.tiles_.front().frame;
    const int64_t size = frame.front() + frame.size(dim());
    tape_size = round_up(field.tape(frame), 64 / int64_t(sizeof(T)));
    memory.reserve(int64_t(3 * all + 5) * Arena::bytes<T>(size) +
                       int64_t(all) * Arena::bytes<T>(tape_size) +
                       Arena::bytes<T>(field.gradient_scratch(frame)),
                   frame.by_sample);
    const auto state = [&] { return memory.take<T>(size) + frame.front(); };
    for (auto* each : {&states, &gx, &direct}) {
      for (T*& x : *each) x = state();
    }
    for (T** each : {&gy, &gk, &carried, &output}) *each = state();
    tapes = memory.take<T>(int64_t(all) * tape_size);
    scratch = memory.take<T>(field.gradient_scratch(frame));
  }

  int64_t dim() const { return solve.dim_; }

  void clear(const Frame& frame, T* x) const { std::fill_n(x, frame.size(dim()), T(0)); }

  // The gradient of an output; nothing in what only fills vectors.
  void load_gradient(const Tile<T>& tile, size_t time, T* to) const {
    clear(tile.frame, to);
    const T* from = upstream + (int64_t(time) * solve.batch_ + tile.first) * dim();
    for (int64_t s = 0; s < tile.frame.samples; ++s) {
      for (int64_t d = 0; d < dim(); ++d) to[tile.frame.place(d, s, dim())] = from[s * dim() + d];
    }
  }

  // to += factor x
  void add(const Frame& frame, const T* x, double factor, T* to) {
    arithmetic.combine(frame, to, {const_cast<T*>(x)}, {{0}, {1.0}}, factor, to);
  }

  void record(Tile<T>& tile, size_t i, T time) {
    field.record(tile.frame, arithmetic.times(tile.frame, time), states[i],
                 tapes + int64_t(i) * tape_size, tile.k[i]);
  }

  // gx[i] = J^T g of stage i.
  void follow(const Frame& frame, size_t i, T* g) {
    field.gradient(frame, states[i], tapes + int64_t(i) * tape_size, g, scratch, gx[i],
                   parameters ? parameters->data() : nullptr);
  }

  void recompute(Tile<T>& tile, double t, double t1) {
    const double h = t1 - t;
    const Extent extent = tile.frame.extent(dim());
    if (!options.adaptive) {
      copy_tile(extent, tile.y, states[0]);
      record(tile, 0, shifted<T>(t, options.perturb ? 1 : 0, direction));
    }
    const bool near = options.adaptive || options.perturb;
    for (size_t i = 1; i < stages; ++i) {
      arithmetic.combine(tile.frame, tile.y, tile.k, tableau.stages[i], h, states[i]);
      const double c = tableau.times[i];
      record(tile, i, c == 1 ? shifted<T>(t1, near ? -1 : 0, direction) : T(t + c * h));
    }
  }

  void recompute_further(Tile<T>& tile, double t, double t1) {
    for (size_t i = stages; i < all; ++i) {
      arithmetic.combine(tile.frame, tile.y, tile.k, tableau.further[i - stages], t1 - t,
                         states[i]);
      record(tile, i, T(t + tableau.further_times[i - stages] * (t1 - t)));
    }
  }

  void add_direct(const Frame& frame, size_t stage, const T* g, double factor) {
    if (!has_direct[stage]) clear(frame, direct[stage]);
    has_direct[stage] = 1;
    add(frame, g, factor, direct[stage]);
  }

  // Weights of an output inside a step in units of the step, and those of its slope.
  Weights weights_at(double x) const {
    if (options.adaptive) return dense_weights(tableau, x);
    Weights weights = tableau.solution;
    for (double& each : weights.values) each *= x;
    return weights;
  }

  Weights slope_weights(double x) const {
    Weights weights;
    for (const Polynomial& each : tableau.dense) {
      double total = 0;
      for (size_t p = each.coefficients.size(); p-- > 0;) {
        total = total * x + double(p + 1) * each.coefficients[p];
      }
      weights.stages.push_back(each.stage);
      weights.values.push_back(total);
    }
    return weights;
  }

  double dot(const Frame& frame, const T* a, const T* b) const {
    double total = 0;
    for (int64_t s = 0; s < frame.samples; ++s) {
      for (int64_t d = 0; d < dim(); ++d) {
        const int64_t i = frame.place(d, s, dim());
        total += double(a[i]) * double(b[i]);
      }
    }
    return total;
  }

  // Outputs in (t, t1]: the state's gradient at t1 in `gy`, the rest into `direct`, and what goes
  // straight to the state at t into gx[all].
  void take_outputs(Tile<T>& tile, double t, double t1, size_t& next) {
    const Frame& frame = tile.frame;
    const double h = t1 - t;
    bool further = false;
    clear(frame, gx[all]);
    for (; next > 0 && (options.times[next] - t) * direction > 0; --next) {
      const double time = options.times[next];
      load_gradient(tile, next, output);
      if (!further && all > stages && (time != t1 || rates)) {
        recompute_further(tile, t, t1);
        further = true;
      }
      if (rates) {
        arithmetic.combine(frame, nullptr, tile.k, slope_weights((time - t) / h), 1, gk);
        (*rates)[next] += dot(frame, output, gk);
      }
      if (time == t1) {
        add(frame, output, 1, gy);
        continue;
      }
      add(frame, output, 1, gx[all]);
      const Weights weights = weights_at((time - t) / h);
      for (size_t j = 0; j < weights.stages.size(); ++j) {
        add_direct(frame, size_t(weights.stages[j]), output, h * weights.values[j]);
      }
    }
  }

  // gk = what reaches the slope of stage j: directly, and by the stages after it.
  void gather(const Frame& frame, size_t j, double h) {
    Weights column;
    for (size_t i = j + 1; i < all; ++i) {
      if (i >= stages && !used_further) break;
      const Weights& row = i < stages ? tableau.stages[i] : tableau.further[i - stages];
      for (size_t n = 0; n < row.stages.size(); ++n) {
        if (size_t(row.stages[n]) != j) continue;
        column.stages.push_back(int(i));
        column.values.push_back(row.values[n]);
      }
    }
    std::vector<T*> from = gx;
    if (!tableau.fsal) {
      for (size_t n = 0; n < tableau.solution.stages.size(); ++n) {
        if (size_t(tableau.solution.stages[n]) != j) continue;
        column.stages.push_back(int(all));
        column.values.push_back(tableau.solution.values[n]);
      }
      from[all] = gy;
    }
    arithmetic.combine(frame, has_direct[j] ? direct[j] : nullptr, from, column, h, gk);
  }
  bool used_further = false;

  void step_back(Tile<T>& tile, size_t n, size_t& next) {
    const Frame& frame = tile.frame;
    const double t = trace.edges[n], t1 = trace.edges[n + 1], h = t1 - t;
    const Extent extent = frame.extent(dim());
    const T* const kept = tile.kept[n].get();
    copy_tile(extent, kept, tile.y);
    if (options.adaptive) copy_tile(extent, kept + frame.size(dim()), tile.k[0]);
    recompute(tile, t, t1);
    std::fill(has_direct.begin(), has_direct.end(), 0);
    if (options.adaptive) add_direct(frame, stages - 1, carried, 1);
    take_outputs(tile, t, t1, next);
    used_further = false;
    for (size_t i = stages; i < all; ++i) used_further = used_further || has_direct[i];
    std::vector<T*> sum{gy, gx[all]};
    for (size_t i = used_further ? all : stages; i-- > (options.adaptive ? 1 : 0);) {
      gather(frame, i, h);
      follow(frame, i, gk);
      // The state of the last stage is the one at the end of the step.
      if (tableau.fsal && i == stages - 1) {
        add(frame, gy, 1, gx[i]);
        sum[0] = gx[i];
      } else {
        sum.push_back(gx[i]);
      }
    }
    if (options.adaptive) {
      gather(frame, 0, h);
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

  void tile_back(Tile<T>& tile) {
    const Frame& frame = tile.frame;
    clear(frame, gy);
    clear(frame, carried);
    size_t next = options.times.size() - 1;
    for (size_t n = trace.edges.size() - 1; n-- > 0;) step_back(tile, n, next);
    if (options.adaptive) {
      copy_tile(frame.extent(dim()), tile.kept[0].get(), states[0]);
      record(tile, 0, T(trace.edges[0]));
      follow(frame, 0, carried);
      add(frame, gx[0], 1, gy);
    }
    load_gradient(tile, 0, output);
    add(frame, output, 1, gy);
    store_tile(frame, gy, dim(), gy0 + tile.first * dim());
  }
};

template <class T>
void MlpSolve<T>::gradient(const MlpField<T>& field, const MlpTrace& trace, const T* upstream,
                           T* gy0, std::vector<std::vector<T>>* parameters, double* rates,
                           int threads, const Parallel& parallel) {
  std::vector<std::vector<double>> thread_rates;
  const auto prepare = [&](int count) {
    if (parameters) {
      parameters->assign(size_t(count), std::vector<T>(size_t(field.parameter_numbers())));
    }
    if (rates) thread_rates.assign(size_t(count), std::vector<double>(options_.times.size()));
  };
  const auto body = [&](int thread, int count) {
    Adjoint adjoint(*this, field, trace, upstream, gy0,
                    parameters ? &(*parameters)[size_t(thread)] : nullptr,
                    rates ? &thread_rates[size_t(thread)] : nullptr);
    for (int64_t i = tiles() * thread / count; i < tiles() * (thread + 1) / count; ++i) {
      adjoint.tile_back(tiles_[size_t(i)]);
    }
  };
  threads = int(std::min<int64_t>(threads, tiles()));
  if (threads <= 1) {
    prepare(1);
    body(0, 1);
  } else {
    parallel(threads, prepare, body);
  }
  if (parameters) {
    std::vector<T>& total = parameters->front();
    for (size_t i = 1; i < parameters->size(); ++i) {
      const std::vector<T>& part = (*parameters)[i];
      for (size_t j = 0; j < total.size(); ++j) total[j] += part[j];
    }
  }
  if (rates) {
    std::fill_n(rates, options_.times.size(), 0.0);
    for (const std::vector<double>& part : thread_rates) {
      for (size_t j = 0; j < part.size(); ++j) rates[j] += part[j];
    }
  }
}

template void MlpSolve<float>::gradient(const MlpField<float>&, const MlpTrace&, const float*,
                                        float*, std::vector<std::vector<float>>*, double*, int,
                                        const Parallel&);
template void MlpSolve<double>::gradient(const MlpField<double>&, const MlpTrace&, const double*,
                                         double*, std::vector<std::vector<double>>*, double*, int,
                                         const Parallel&);

}  // namespace fastnode
