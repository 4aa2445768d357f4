#include "mlp/cpu/solve_joint.h"

#include <cmath>
#include <deque>
#include <limits>

#include "mlp/cpu/barrier.h"
#include "mlp/cpu/tile_arithmetic.h"
#include "step_control/rk_control.h"
#include "step_control/stiffness.h"

namespace fastnode {

// One thread of a solve, which works on a range of the tiles. All threads hold the same course and
// come to the same decisions. No two workers share a cache line.
template <class T>
struct alignas(64) MlpSolve<T>::Worker {
  MlpSolve& solve;
  const MlpOptions& options;
  const Tableau& tableau;
  const Field<T>& field;
  Barrier& barrier;
  T* const ys;
  MlpTrace& trace;
  const bool leads;  // this thread alone writes to the trace
  Tile<T>*const begin, *const end;

  TileArithmetic<T> arithmetic;
  Arena memory;
  T *scratch, *output;
  std::vector<T> spare;  // see further_state
  const double direction, limit;

  Course course;
  int64_t evaluations = 0;
  bool failed = false;
  bool accepted = false;  // the tiles still hold the beginning of the step accepted last
  int turn = 0;           // sums of squares that were computed so far, see next_sums
  InterruptPoll poll;
  const int64_t work;  // multiplications of an evaluation of a sample

  // Steps that memory is reserved for in the beginning, and now; steps kept so far.
  static constexpr int64_t kFirstCapacity = 16;
  int64_t capacity = kFirstCapacity, kept = 0;
  bool tapes = false;  // whether the tape has room for the step at hand

  Worker(MlpSolve& solve, Barrier& barrier, T* ys, MlpTrace& trace, int thread, int threads)
      : solve(solve),
        options(solve.options_),
        tableau(*options.tableau),
        field(*solve.field_),
        barrier(barrier),
        ys(ys),
        trace(trace),
        leads(thread == 0),
        begin(solve.tiles_.data() + solve.tiles() * thread / threads),
        end(solve.tiles_.data() + solve.tiles() * (thread + 1) / threads),
        arithmetic(field, solve.tiles_.front().frame, tableau.stages.size() + 2),
        direction(options.direction()),
        limit(options.times.back()),
        poll(solve.interruption_, leads),
        work(field.multiplications()) {
    course.t = course.t1 = options.times.front();
    course.direction = direction;
    const Frame& largest = solve.tiles_.front().frame;
    const int64_t numbers = largest.size(dim());
    const size_t stages = begin->k.size();
    memory.reserve(
        Arena::bytes<T>(field.scratch(largest)) + int64_t(stages + 1) * Arena::bytes<T>(numbers),
        largest.sample_major);
    scratch = memory.take<T>(field.scratch(largest));
    output = memory.take<T>(numbers);
    for (size_t i = 0; i < stages; ++i) {
      if (solve.owns(i)) continue;
      T* const shared = memory.take<T>(numbers);
      for (Tile<T>* tile = begin; tile != end; ++tile) tile->k[i] = shared;
    }
  }

  int64_t dim() const { return solve.dim_; }

  void run(const T* y0) {
    for (Tile<T>* tile = begin; tile != end; ++tile) {
      arithmetic.load(tile->frame, y0 + tile->first * dim(), tile->y);
      write(*tile, tile->y, 0);
    }
    if (options.adaptive) {
      run_adaptive();
    } else {
      run_fixed();
    }
    poll.finish();
  }

  void finish() {
    if (!leads) return;
    trace.evaluations = evaluations;
    trace.rejected = course.rejected;
    trace.t = course.t;
    trace.h = course.h * direction;
    trace.ratio = course.ratio;
    trace.attempts = course.attempts;
    if (failed) trace.ending = Ending::kStuck;
  }

  // The state of a tile at output time number `time`.
  void write(const Tile<T>& tile, const T* state, size_t time) {
    T* const to = ys + (int64_t(time) * solve.batch_ + tile.first) * dim();
    arithmetic.store(tile.frame, state, to);
  }

  void evaluate(Tile<T>& tile, T time, T* state, T* derivative) {
    field.value(tile.frame, arithmetic.times(tile.frame, time), state, scratch, derivative);
    poll.after(work * tile.frame.samples);
  }

  // Memory of the tape for stage i of the step at hand; null if there is none.
  typename Tape::template Stage<T> taped(const Tile<T>& tile, size_t i) const {
    if (!tapes) return {nullptr, nullptr};
    return options.tape->template stage<T>(kept, &tile - solve.tiles_.data(), int64_t(i),
                                           tile.frame);
  }

  // k_i at `state`, which goes to the tape if that has room for it.
  void evaluate_stage(Tile<T>& tile, size_t i, T time, T* state) {
    const auto [copy, record] = taped(tile, i);
    if (!copy) return evaluate(tile, time, state, tile.k[i]);
    copy_tile(tile.frame.extent(dim()), state, copy);
    field.record(tile.frame, arithmetic.times(tile.frame, time), copy, record, scratch, tile.k[i]);
    poll.after(work * tile.frame.samples);
  }

  // The stages of the step at hand. Those at its end are evaluated just before it, unless steps
  // along a grid are not `perturbed`.
  void take_stages(Tile<T>& tile, bool perturbed) {
    for (size_t i = 1; i < tableau.stages.size(); ++i) {
      arithmetic.combine(tile.frame, tile.y, tile.k.data(), tableau.stages[i], course.step,
                         tile.stage);
      const double c = tableau.times[i];
      const T time = c == 1 && !perturbed ? as_time<T>(course.t1) : stage_time<T>(course, c);
      evaluate_stage(tile, i, time, tile.stage);
    }
    if (!tableau.fsal) {
      arithmetic.combine(tile.frame, tile.y, tile.k.data(), tableau.solution, course.step, tile.y1);
    }
  }

  // What gradients need of the beginning of a step.
  void keep(const Tile<T>& tile, int64_t step) {
    if (!options.keep_states) return;
    const int64_t row = solve.batch_ * dim();
    T* const to = solve.kept_.data() + step * options.parts() * row + tile.first * dim();
    arithmetic.store(tile.frame, tile.y, to);
    if (options.adaptive) arithmetic.store(tile.frame, tile.k[0], to + row);
  }

  void run_fixed() {
    const std::vector<double>&times = options.times, &grid = options.grid;
    for (Tile<T>* tile = begin; tile != end; ++tile) {
      size_t next = 1;
      for (size_t i = 0; i + 1 < grid.size() && !poll.requested(); ++i) {
        const double t = course.t = grid[i], t1 = course.t1 = grid[i + 1];
        course.step = t1 - t;
        kept = int64_t(i);
        tapes = options.tape && kept < options.tape->steps();
        evaluate_stage(*tile, 0, shifted<T>(t, options.perturb ? 1 : 0, direction), tile->y);
        keep(*tile, kept);
        take_stages(*tile, options.perturb);
        for (; next < times.size() && (t1 - times[next]) * direction >= 0; ++next) {
          if (times[next] == t1) {
            write(*tile, tile->y1, next);
            continue;
          }
          arithmetic.combine(tile->frame, tile->y, tile->k.data(), tableau.solution,
                             times[next] - t, output);
          write(*tile, output, next);
        }
        std::swap(tile->y, tile->y1);
        if (tableau.fsal) tile->stage = tile->y1;
      }
    }
    evaluations = int64_t(grid.size() - 1) * int64_t(tableau.stages.size());
    if (leads) trace.edges = grid;
    finish();
  }

  void run_adaptive() {
    for (Tile<T>* tile = begin; tile != end; ++tile) {
      evaluate(*tile, as_time<T>(course.t), tile->y, tile->k[0]);
    }
    ++evaluations;
    if (options.first_step) {
      course.h = *options.first_step;
    } else if (!choose_first_step()) {
      fail();
      if (leads) trace.ending = Ending::kBadStart;
      return;
    }
    course.h = options.controller.clip(course.h);
    if (options.first_step_alone) return advance() ? finish() : fail();
    tapes = options.tape && options.tape->steps() > 0;
    const std::vector<double>& times = options.times;
    const double& t = course.t;
    for (size_t i = 1; i < times.size();) {
      if (!options.all_together) course.attempts = 0;
      while ((t - times[i]) * direction < 0) {
        if (!advance()) return fail();
      }
      const double step = t - course.t_before;
      bool further = false;
      for (; i < times.size() && (t - times[i]) * direction > 0; ++i) {
        if (!further) take_further_stages();
        further = true;
        const Weights weights = dense_weights(tableau, (times[i] - course.t_before) / step);
        for (Tile<T>* tile = begin; tile != end; ++tile) {
          arithmetic.combine(tile->frame, tile->y, tile->k.data(), weights, step, output);
          write(*tile, output, i);
        }
      }
      if (i == times.size() || times[i] != t) continue;
      for (Tile<T>* tile = begin; tile != end; ++tile) write(*tile, tile->y1, i);
      ++i;
    }
    finish();
  }

  // Memory for up to three sums of squares of each part of each tile. Threads read the sums of one
  // turn while others may already write those of the next.
  double* next_sums() { return solve.sums_.data() + (turn++ % 2) * solve.sums_of_a_turn(); }
  // Sums of one kind, [parts, tiles].
  int64_t kind() const { return field.parts() * solve.tiles(); }

  // Of the whole state, from the sums of all tiles: in their order, whichever thread has them.
  double rms(const double* sums) const {
    double total = 0;
    for (int64_t i = 0; i < kind(); ++i) total += sums[i];
    return std::sqrt(total / double(solve.batch_ * dim()));
  }

  // The largest of its parts.
  double norm(const double* sums) const {
    if (field.parts() == 1) return rms(sums);
    double largest = 0;
    for (int64_t p = 0; p < field.parts(); ++p, sums += solve.tiles()) {
      double total = 0;
      for (int64_t i = 0; i < solve.tiles(); ++i) total += sums[i];
      const Features part = field.part(p);
      const double found = std::sqrt(total / double(solve.batch_ * (part.end - part.begin)));
      // NaN is the largest of all.
      if (!(found <= largest)) largest = found;
    }
    return largest;
  }

  void squares(const Tile<T>& tile, const T* after, T* const* k, const Weights& weights,
               double scale, double rtol, double atol, double* sums) {
    sums += &tile - solve.tiles_.data();
    for (int64_t p = 0; p < field.parts(); ++p, sums += solve.tiles()) {
      *sums = arithmetic.squares(tile.frame, field.part(p), tile.y, after, k, weights, scale, rtol,
                                 atol);
    }
  }

  void squares(const Tile<T>& tile, T* const* k, const Weights& weights, double* sums) {
    squares(tile, tile.y, k, weights, 1, options.rtol, options.atol, sums);
  }

  // fastnode.control.controllers.initial_step, which gives the source. The derivative at the end of
  // the trial step goes to k[1].
  bool choose_first_step() {
    double* sums = next_sums();
    for (Tile<T>* tile = begin; tile != end; ++tile) {
      squares(*tile, &tile->y, kFirst, sums);
      squares(*tile, tile->k.data(), kFirst, sums + kind());
    }
    barrier.wait();
    const double d0 = norm(sums), d1 = norm(sums + kind());
    if (!finite(d0) || !finite(d1)) return false;
    const double h0 = Controller::trial_step(d0, d1, std::abs(limit - course.t));
    const double step = direction * h0;
    sums = next_sums();
    for (Tile<T>* tile = begin; tile != end; ++tile) {
      arithmetic.combine(tile->frame, tile->y, tile->k.data(), kFirst, step, tile->stage);
      evaluate(*tile, as_time<T>(course.t + step), tile->stage, tile->k[1]);
      squares(*tile, tile->k.data(), kChange, sums);
    }
    barrier.wait();
    ++evaluations;
    course.h = options.controller.first_step(h0, d1, norm(sums), LibraryPower());
    return true;
  }

  // Tries steps until one is accepted; false if none can be.
  bool advance() {
    if (accepted) move_on();
    accepted = false;
    while (!accepted) {
      failed = failure_of(course, options.max_num_steps) != Failure::kNone;
      if (failed) return false;
      plan(course, limit);
      const double* const sums = attempt();
      if (sums == nullptr) return false;
      accepted =
          settle(course, options.controller, norm(sums), LibraryPower(), options.first_step_alone);
      if (!accepted) continue;
      if (leads) record(sums);
      keep_step();
    }
    return true;
  }

  // Takes the stages of the step at hand: the sums of squares of its error and, where there is an
  // estimate of stiffness, of its two parts; null if the solve is to end.
  const double* attempt() {
    double* const to_end = solve.sums_.data() + 2 * solve.sums_of_a_turn() + turn % 2;
    double* const sums = next_sums();
    for (Tile<T>* tile = begin; tile != end; ++tile) {
      take_stages(*tile, true);
      squares(*tile, tile->y1, tile->k.data(), tableau.error, course.step, options.rtol,
              options.atol, sums);
      if (!options.pair) continue;
      for (int i = 0; i < 2; ++i) {
        const Weights& weights = i ? options.pair->states : options.pair->derivatives;
        squares(*tile, tile->y, tile->k.data(), weights, 1, 0, 1, sums + (i + 1) * kind());
      }
    }
    evaluations += int64_t(tableau.stages.size()) - 1;
    // As with the sums, all threads must read the same: the other one is written after this turn.
    if (leads && poll.requested()) *to_end = 1;
    barrier.wait();
    return *to_end == 0 ? sums : nullptr;
  }

  void record(const double* sums) {
    trace.edges.push_back(course.t);
    trace.error.push_back(course.ratio);
    trace.stiffness.push_back(
        options.pair
            ? stiffness_of(rms(sums + kind()), rms(sums + 2 * kind()), options.pair->stability)
            : std::numeric_limits<double>::quiet_NaN());
  }

  void keep_step() {
    if (options.keep_states && kept == capacity) {
      // The memory may move when it grows: no thread may write to it meanwhile.
      capacity *= 2;
      barrier.wait();
      if (leads) solve.kept_.reserve(capacity * options.parts() * solve.batch_ * dim());
      barrier.wait();
    }
    for (Tile<T>* tile = begin; tile != end; ++tile) keep(*tile, kept);
    ++kept;
    if (tapes && kept == options.tape->steps()) {
      barrier.wait();
      if (leads) options.tape->grow();
      barrier.wait();
      tapes = kept < options.tape->steps();
    }
  }

  // The next step begins where the one that was accepted last ends.
  void move_on() {
    for (Tile<T>* tile = begin; tile != end; ++tile) {
      std::swap(tile->y, tile->y1);
      if (tableau.fsal) tile->stage = tile->y1;
      std::swap(tile->k[0], tile->k[tableau.stages.size() - 1]);
    }
  }

  // The stages that only dense output needs, of the step that was accepted last.
  void take_further_stages() {
    const double t0 = course.t_before, step = course.t - t0;
    const size_t stages = tableau.stages.size();
    for (size_t i = 0; i < tableau.further.size(); ++i) {
      const T time = as_time<T>(t0 + tableau.further_times[i] * step);
      for (Tile<T>* tile = begin; tile != end; ++tile) {
        T* const state = tile->stage == tile->y1 ? further_state(*tile) : tile->stage;
        arithmetic.combine(tile->frame, tile->y, tile->k.data(), tableau.further[i], step, state);
        evaluate(*tile, time, state, tile->k[stages + i]);
      }
      ++evaluations;
    }
  }

  // Memory for the state of such a stage where `stage` holds the end of the step.
  T* further_state(const Tile<T>& tile) {
    spare.resize(size_t(tile.frame.front() + tile.frame.size(dim()) + 64 / sizeof(T)));
    // At a line of the cache, as all states are.
    const size_t place = reinterpret_cast<uintptr_t>(spare.data()) / sizeof(T);
    const size_t line = 64 / sizeof(T);
    return spare.data() + (line - place % line) % line + tile.frame.front();
  }

  // For the message of a solve that cannot go on: whether stage derivatives of the step tried last
  // are not finite, or k_0 where no step was rejected.
  void fail() {
    if (poll.requested()) return;
    for (Tile<T>* tile = begin; tile != end; ++tile) {
      const bool rejected = course.t1 != course.t;
      // Stage derivatives of another tile may have been written over those of this one.
      if (rejected) take_stages(*tile, true);
      find_not_finite(*tile, rejected ? tableau.stages.size() : 1);
    }
    finish();
  }

  void find_not_finite(const Tile<T>& tile, size_t stages) {
    const Extent extent = tile.frame.extent(dim());
    for (size_t j = 0; j < stages; ++j) {
      for (int64_t r = 0; r < extent.rows; ++r) {
        const T* const row = tile.k[j] + r * extent.stride;
        for (int64_t i = 0; i < extent.columns; ++i) {
          if (std::isnan(row[i])) solve.saw_nan_ = true;
          if (std::isinf(row[i])) solve.saw_infinity_ = true;
        }
      }
    }
  }
};

template <class T>
MlpSolve<T>::MlpSolve(const Field<T>& field, int64_t batch, MlpOptions options)
    : field_(&field), options_(std::move(options)), batch_(batch), dim_(field.dim()) {
  const Tableau& tableau = *options_.tableau;
  const int64_t width = field.tile(batch);
  const size_t stages = tableau.stages.size() + tableau.further.size();
  // y, y1 and, where the last stage is not at the end of the step, one more.
  const int64_t states = tableau.fsal ? 2 : 3;
  int64_t bytes = 0, owned = 0;
  for (size_t i = 0; i < stages; ++i) owned += owns(i);
  for (int64_t first = 0; first < batch; first += width) {
    Tile<T> tile{field.frame(std::min(width, batch - first)),
                 first,
                 nullptr,
                 nullptr,
                 nullptr,
                 std::vector<T*>(stages)};
    const Frame& frame = tile.frame;
    bytes += states * Arena::bytes<T>(frame.front() + frame.size(dim_)) +
             owned * Arena::bytes<T>(frame.size(dim_));
    tiles_.push_back(std::move(tile));
  }
  // Where features lie side by side, the padding between rows enters products.
  memory_.reserve(bytes, field.sample_major);
  for (Tile<T>& tile : tiles_) {
    const Frame& frame = tile.frame;
    const auto state = [&] {
      return memory_.take<T>(frame.front() + frame.size(dim_)) + frame.front();
    };
    tile.y = state();
    tile.y1 = state();
    tile.stage = tableau.fsal ? tile.y1 : state();
    for (size_t i = 0; i < stages; ++i) {
      if (owns(i)) tile.k[i] = memory_.take<T>(frame.size(dim_));
    }
  }
  sums_.resize(size_t(2 * sums_of_a_turn()) + 2);
  options_.controller.resolution = Resolution<T>::value;
}

template <class T>
MlpTrace MlpSolve<T>::run(const T* y0, T* ys, int threads, const Parallel& parallel) {
  MlpTrace trace;
  if (options_.adaptive) {
    for (auto* each : {&trace.edges, &trace.error, &trace.stiffness})
      each->reserve(Worker::kFirstCapacity);
  }
  trace.edges.push_back(options_.times.front());
  if (options_.keep_states) {
    const int64_t steps =
        options_.adaptive ? Worker::kFirstCapacity : int64_t(options_.grid.size()) - 1;
    kept_.reserve(steps * options_.parts() * batch_ * dim_);
  }
  if (options_.tape) {
    const int64_t stages = int64_t(options_.tableau->stages.size());
    options_.tape->begin(*field_, tiles_.front().frame, stages, tiles(),
                         options_.adaptive ? 1 : int64_t(options_.grid.size()) - 1);
  }
  threads = int(std::min<int64_t>(threads, tiles()));
  if (threads <= 1) {
    Barrier barrier(1);
    Worker(*this, barrier, ys, trace, 0, 1).run(y0);
  } else {
    std::optional<Barrier> barrier;
    // Constructed one after the other, so that each gets the memory that it had in the solve
    // before, which the cache of its core may still hold.
    std::deque<Worker> workers;
    const auto prepare = [&](int count) {
      barrier.emplace(count);
      interruption_.begin(count);
      for (int i = 0; i < count; ++i) workers.emplace_back(*this, *barrier, ys, trace, i, count);
    };
    parallel(threads, prepare, [&](int thread, int) { workers[size_t(thread)].run(y0); });
  }
  if (interruption_.requested()) trace.ending = Ending::kInterrupted;
  trace.saw_nan = saw_nan_;
  trace.saw_infinity = saw_infinity_;
  return trace;
}

template class MlpSolve<float>;
template class MlpSolve<double>;

}  // namespace fastnode
