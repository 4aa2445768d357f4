#include "fused/mlp_solve.h"

#include <cstring>

#include "fused/barrier.h"
#include "fused/worker.h"

namespace fastnode {

template <class T>
bool MlpSolve<T>::prefers_rows(const std::vector<typename MlpField<T>::Source>& layers,
                               int64_t batch, int64_t lanes) {
  // An activation costs about twenty multiplications.
  int64_t rows = 0, columns = 0;
  for (const auto& each : layers) {
    const int64_t work = each.in + 20;
    rows += batch * round_up(each.out, lanes) / lanes * work;
    columns += each.out * round_up(batch, lanes) / lanes * work;
  }
  return batch < lanes && rows < columns;
}

template <class T>
MlpSolve<T>::MlpSolve(const MlpField<T>& field, bool by_sample, int64_t batch, MlpOptions options)
    : field_(&field),
      options_(std::move(options)),
      batch_(batch),
      dim_(field.dim()),
      by_sample_(by_sample) {
  const Tableau& tableau = *options_.tableau;
  const int64_t lanes = field.kernels->lanes, width = by_sample ? batch : 2 * lanes;
  const size_t slopes = tableau.stages.size() + tableau.further.size();
  // y, y1 and, where the last stage is not at the end of the step, one more.
  const int64_t states = tableau.fsal ? 2 : 3;
  int64_t bytes = 0;
  for (int64_t first = 0; first < batch; first += width) {
    Tile<T> tile{make_frame(by_sample, std::min(width, batch - first), lanes),
                 first,
                 nullptr,
                 nullptr,
                 nullptr,
                 std::vector<T*>(slopes),
                 {}};
    const Frame& frame = tile.frame;
    bytes += states * Arena::bytes<T>(frame.front() + frame.size(dim_)) +
             int64_t(slopes) * Arena::bytes<T>(frame.size(dim_));
    tiles_.push_back(std::move(tile));
  }
  // Where features stand side by side, none may meet what lies between them.
  memory_.reserve(bytes, by_sample);
  for (Tile<T>& tile : tiles_) {
    const Frame& frame = tile.frame;
    const auto state = [&] {
      return memory_.take<T>(frame.front() + frame.size(dim_)) + frame.front();
    };
    tile.y = state();
    tile.y1 = state();
    tile.stage = tableau.fsal ? tile.y1 : state();
    for (T*& k : tile.k) k = memory_.take<T>(frame.size(dim_));
  }
  sums_.resize(6 * tiles_.size());
}

template <class T>
int64_t MlpSolve<T>::kept_bytes() const {
  int64_t total = 0;
  for (const Tile<T>& tile : tiles_) {
    total += int64_t(tile.kept.size()) * 2 * tile.frame.size(dim_) * int64_t(sizeof(T));
  }
  return total;
}

// One thread of a solve. All threads hold the same control and decide alike.
template <class T>
struct MlpSolve<T>::Worker {
  MlpSolve& solve;
  const MlpOptions& options;
  const Tableau& tableau;
  const MlpField<T>& field;
  Barrier& barrier;
  T* const ys;
  MlpTrace& trace;
  const bool leads;
  Tile<T>*const begin, *const end;

  TileArithmetic<T> arithmetic;
  std::vector<T> scratch, output;
  const double direction;

  double t, h = 0, t_before = 0, limit;
  double before = 1, earlier = 1, ratio = 0, stiff = 0;
  int64_t attempts = 0, evaluations = 0, rejected = 0;
  bool stuck = false, failed = false, stepped = false;
  int turn = 0;

  Worker(MlpSolve& whole, Barrier& meeting, T* out, MlpTrace& record, int thread, int threads)
      : solve(whole),
        options(whole.options_),
        tableau(*options.tableau),
        field(*whole.field_),
        barrier(meeting),
        ys(out),
        trace(record),
        leads(thread == 0),
        begin(whole.tiles_.data() + whole.tiles() * thread / threads),
        end(whole.tiles_.data() + whole.tiles() * (thread + 1) / threads),
        arithmetic(field, whole.tiles_.front().frame, int64_t(tableau.stages.size()) + 2),
        scratch(size_t(field.scratch(whole.tiles_.front().frame))),
        output(size_t(whole.tiles_.front().frame.size(whole.dim_))),
        direction(options.direction()),
        t(options.times.front()),
        limit(options.times.back()) {}

  int64_t dim() const { return solve.dim_; }

  void evaluate(Tile<T>& tile, T time, T* state, T* slope) {
    field.value(tile.frame, arithmetic.times(tile.frame, time), state, scratch.data(), slope);
  }

  void begin_tiles(const T* y0) {
    for (Tile<T>* tile = begin; tile != end; ++tile) {
      load_tile(tile->frame, y0 + tile->first * dim(), dim(), tile->y);
      write(*tile, tile->y, 0);
    }
  }

  void write(const Tile<T>& tile, const T* state, size_t time) {
    T* const to = ys + (int64_t(time) * solve.batch_ + tile.first) * dim();
    store_tile(tile.frame, state, dim(), to);
  }

  // Sums of all tiles by all threads, in the order of the tiles whoever owns them.
  template <class F>
  double joint(F squares) {
    double* const sums = solve.sums_.data() + (turn % 2) * 3 * solve.tiles();
    for (Tile<T>* tile = begin; tile != end; ++tile) {
      sums[tile - solve.tiles_.data()] = squares(*tile);
    }
    barrier.wait();
    return rms(sums);
  }

  double rms(const double* sums) {
    ++turn;
    double total = 0;
    for (int64_t i = 0; i < solve.tiles(); ++i) total += sums[i];
    return std::sqrt(total / double(solve.batch_ * dim()));
  }

  double size(const std::vector<int>& stages, const std::vector<double>& values, double factor,
              bool of_state) {
    return joint([&](Tile<T>& tile) {
      const std::vector<T*> one{tile.y};
      return arithmetic.squares(tile.frame, tile.y, tile.y, of_state ? one : tile.k,
                                {stages, values}, factor, options.rtol, options.atol);
    });
  }

  // fastnode.controllers.initial_step, which gives the source. The trial's slope is kept in k[1].
  bool choose_first_step() {
    const double d0 = size({0}, {1.0}, 1, true), d1 = size({0}, {1.0}, 1, false);
    if (!std::isfinite(d0) || !std::isfinite(d1)) return false;
    double h0 = d0 < 1e-5 || d1 < 1e-5 ? 1e-6 : 0.01 * d0 / d1;
    h0 = std::min(h0, std::abs(limit - t));
    const double signed_h = std::copysign(h0, limit - t);
    for (Tile<T>* tile = begin; tile != end; ++tile) {
      arithmetic.combine(tile->frame, tile->y, tile->k, {{0}, {1.0}}, signed_h, tile->stage);
      evaluate(*tile, T(t + signed_h), tile->stage, tile->k[1]);
    }
    ++evaluations;
    const double d2 = size({1, 0}, {1.0, -1.0}, 1, false) / h0;
    h = h0;
    if (!std::isfinite(d2)) return true;
    const double h1 = d1 <= 1e-15 && d2 <= 1e-15
                          ? std::max(1e-6, h0 * 1e-3)
                          : std::pow(0.01 / std::max(d1, d2), 1.0 / tableau.order);
    h = std::min(100 * h0, h1);
    return true;
  }

  void take_stages(Tile<T>& tile, double t1, bool perturb) {
    const double step = t1 - t;
    for (size_t i = 1; i < tableau.stages.size(); ++i) {
      arithmetic.combine(tile.frame, tile.y, tile.k, tableau.stages[i], step, tile.stage);
      const double c = tableau.times[i];
      const T time = c == 1 ? shifted<T>(t1, perturb ? -1 : 0, direction) : T(t + c * step);
      evaluate(tile, time, tile.stage, tile.k[i]);
    }
    if (!tableau.fsal) {
      arithmetic.combine(tile.frame, tile.y, tile.k, tableau.solution, step, tile.y1);
    }
  }

  void keep(Tile<T>& tile) {
    if (!options.keep_states) return;
    const int64_t count = tile.frame.size(dim());
    std::unique_ptr<T[]> block(new T[size_t(2 * count)]());
    const Extent extent = tile.frame.extent(dim());
    copy_tile(extent, tile.y, block.get());
    if (options.adaptive) copy_tile(extent, tile.k[0], block.get() + count);
    tile.kept.push_back(std::move(block));
  }

  // Whether another step can be tried.
  bool progress() {
    if (attempts < options.max_num_steps && t + h * direction != t && !stuck) return true;
    failed = true;
    return false;
  }

  bool advance() {
    if (stepped) move_on();
    stepped = false;
    while (true) {
      if (!progress()) return false;
      ++attempts;
      const double room = std::abs(limit - t), taken = std::min(h, room);
      const double t1 = h < room ? t + h * direction : limit, step = t1 - t;
      double* const sums = solve.sums_.data() + (turn % 2) * 3 * solve.tiles();
      for (Tile<T>* tile = begin; tile != end; ++tile) {
        take_stages(*tile, t1, true);
        const int64_t place = tile - solve.tiles_.data();
        sums[place] = arithmetic.squares(tile->frame, tile->y, tile->y1, tile->k, tableau.error,
                                         step, options.rtol, options.atol);
        if (!options.pair) continue;
        for (int i = 0; i < 2; ++i) {
          const Weights& weights = i ? options.pair->states : options.pair->slopes;
          sums[(i + 1) * solve.tiles() + place] =
              arithmetic.squares(tile->frame, tile->y, tile->y, tile->k, weights, 1, 0, 1);
        }
      }
      evaluations += int64_t(tableau.stages.size()) - 1;
      barrier.wait();
      ratio = rms(sums);
      const double following = options.controller.next_step(taken, ratio, before, earlier);
      if (!options.controller.accepts(taken, ratio)) {
        ++rejected;
        stuck = following >= taken;
        h = following;
        continue;
      }
      if (leads) record(t1, sums);
      for (Tile<T>* tile = begin; tile != end; ++tile) keep(*tile);
      earlier = before;
      before = ratio;
      stuck = false;
      // A step cut short says little of what the next one may be.
      h = taken < h ? std::max(following, h) : following;
      t_before = t;
      t = t1;
      stepped = true;
      return true;
    }
  }

  void record(double t1, const double* sums) {
    trace.edges.push_back(t1);
    trace.error.push_back(ratio);
    double stiffness = std::numeric_limits<double>::quiet_NaN();
    if (options.pair) {
      double slopes = 0, states = 0;
      for (int64_t i = 0; i < solve.tiles(); ++i) {
        slopes += sums[solve.tiles() + i];
        states += sums[2 * solve.tiles() + i];
      }
      stiffness = slopes == 0 ? 0 : std::sqrt(slopes / states) / options.pair->stability;
    }
    trace.stiffness.push_back(stiffness);
  }

  // Where the step that was accepted last ends, another one begins.
  void move_on() {
    for (Tile<T>* tile = begin; tile != end; ++tile) {
      std::swap(tile->y, tile->y1);
      if (tableau.fsal) tile->stage = tile->y1;
      std::swap(tile->k[0], tile->k[tableau.stages.size() - 1]);
    }
  }

  void adaptive() {
    for (Tile<T>* tile = begin; tile != end; ++tile) evaluate(*tile, T(t), tile->y, tile->k[0]);
    ++evaluations;
    if (options.first_step) {
      h = *options.first_step;
    } else if (!choose_first_step()) {
      if (leads) trace.ending = Ending::kBadStart;
      return;
    }
    h = options.controller.clip(h);
    const std::vector<double>& times = options.times;
    for (size_t i = 1; i < times.size();) {
      if (options.counted_anew) attempts = 0;
      while ((t - times[i]) * direction < 0) {
        if (!advance()) return finish();
      }
      const double step = t - t_before;
      bool further = false;
      for (; i < times.size() && (t - times[i]) * direction > 0; ++i) {
        if (!further) take_further_stages();
        further = true;
        const Weights weights = dense_weights(tableau, (times[i] - t_before) / step);
        for (Tile<T>* tile = begin; tile != end; ++tile) {
          arithmetic.combine(tile->frame, tile->y, tile->k, weights, step, output.data());
          write(*tile, output.data(), i);
        }
      }
      if (i == times.size() || times[i] != t) continue;
      for (Tile<T>* tile = begin; tile != end; ++tile) write(*tile, tile->y1, i);
      ++i;
    }
    finish();
  }

  void take_further_stages() {
    const double step = t - t_before;
    const size_t stages = tableau.stages.size();
    for (size_t i = 0; i < tableau.further.size(); ++i) {
      for (Tile<T>* tile = begin; tile != end; ++tile) {
        T* const state = tile->stage == tile->y1 ? further_state(*tile) : tile->stage;
        arithmetic.combine(tile->frame, tile->y, tile->k, tableau.further[i], step, state);
        evaluate(*tile, T(t_before + tableau.further_times[i] * step), state, tile->k[stages + i]);
      }
      ++evaluations;
    }
  }

  std::vector<T> spare;
  T* further_state(const Tile<T>& tile) {
    spare.resize(size_t(tile.frame.front() + tile.frame.size(dim()) + 64 / sizeof(T)));
    return spare.data() + tile.frame.front();
  }

  void fixed() {
    const std::vector<double>&times = options.times, &grid = options.grid;
    for (Tile<T>* tile = begin; tile != end; ++tile) {
      size_t next = 1;
      for (size_t i = 0; i + 1 < grid.size(); ++i) {
        t = grid[i];
        const double t1 = grid[i + 1];
        evaluate(*tile, shifted<T>(t, options.perturb ? 1 : 0, direction), tile->y, tile->k[0]);
        keep(*tile);
        take_stages(*tile, t1, options.perturb);
        for (; next < times.size() && (t1 - times[next]) * direction >= 0; ++next) {
          if (times[next] == t1) {
            write(*tile, tile->y1, next);
            continue;
          }
          arithmetic.combine(tile->frame, tile->y, tile->k, tableau.solution, times[next] - t,
                             output.data());
          write(*tile, output.data(), next);
        }
        std::swap(tile->y, tile->y1);
        if (tableau.fsal) tile->stage = tile->y1;
      }
    }
    evaluations = int64_t(grid.size() - 1) * int64_t(tableau.stages.size());
    if (leads) trace.edges = grid;
    finish();
  }

  void finish() {
    if (!leads) return;
    trace.evaluations = evaluations;
    trace.rejected = rejected;
    trace.t = t;
    trace.h = h * direction;
    trace.ratio = ratio;
    trace.attempts = attempts;
    if (failed) trace.ending = Ending::kStuck;
  }
};

template <class T>
MlpTrace MlpSolve<T>::run(const T* y0, T* ys, int threads, const Parallel& parallel) {
  MlpTrace trace;
  trace.edges.push_back(options_.times.front());
  std::optional<Barrier> barrier;
  const auto prepare = [&](int count) { barrier.emplace(count); };
  const auto body = [&](int thread, int count) {
    Worker worker(*this, *barrier, ys, trace, thread, count);
    worker.begin_tiles(y0);
    if (options_.adaptive) {
      worker.adaptive();
    } else {
      worker.fixed();
    }
  };
  threads = int(std::min<int64_t>(threads, tiles()));
  if (threads <= 1) {
    prepare(1);
    body(0, 1);
  } else {
    parallel(threads, prepare, body);
  }
  if (trace.ending != Ending::kFinished) {
    for (const Tile<T>& tile : tiles_) {
      const Extent extent = tile.frame.extent(dim_);
      for (const T* k : tile.k) {
        for (int64_t r = 0; r < extent.rows; ++r) {
          for (int64_t i = r * extent.stride; i < r * extent.stride + extent.columns; ++i) {
            trace.saw_nan = trace.saw_nan || std::isnan(k[i]);
            trace.saw_infinity = trace.saw_infinity || std::isinf(k[i]);
          }
        }
      }
    }
  }
  return trace;
}

template class MlpSolve<float>;
template class MlpSolve<double>;

}  // namespace fastnode
