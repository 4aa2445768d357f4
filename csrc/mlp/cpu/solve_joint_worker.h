#pragma once

#include <cmath>
#include <vector>

#include "mlp/cpu/barrier.h"
#include "mlp/cpu/tile_arithmetic.h"

namespace fastnode {

// One thread of a solve: what it does with its tiles, and steps along a grid. No two in one line of
// a cache.
template <class T>
struct alignas(64) MlpSolve<T>::Worker {
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
  Arena memory;
  T *scratch, *output;
  const double direction;

  const double limit;
  Course course;
  int64_t evaluations = 0;
  bool failed = false, stepped = false;
  int turn = 0;

  // Steps that memory is there for, and those kept so far.
  static constexpr int64_t kRoom = 16;
  int64_t room = kRoom, kept = 0;
  bool tapes = false;  // whether the step at hand is written down

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
        arithmetic(field, whole.tiles_.front().frame, tableau.stages.size() + 2),
        direction(options.direction()),
        limit(options.times.back()) {
    course.t = course.t1 = options.times.front();
    course.direction = direction;
    const Frame& largest = whole.tiles_.front().frame;
    const int64_t numbers = largest.size(dim());
    const size_t slopes = begin->k.size();
    memory.reserve(
        Arena::bytes<T>(field.scratch(largest)) + int64_t(slopes + 1) * Arena::bytes<T>(numbers),
        largest.by_sample);
    scratch = memory.take<T>(field.scratch(largest));
    output = memory.take<T>(numbers);
    for (size_t i = 0; i < slopes; ++i) {
      if (whole.owns(i)) continue;
      T* const shared = memory.take<T>(numbers);
      for (Tile<T>* tile = begin; tile != end; ++tile) tile->k[i] = shared;
    }
  }

  int64_t dim() const { return solve.dim_; }

  void evaluate(Tile<T>& tile, T time, T* state, T* slope) {
    field.value(tile.frame, arithmetic.times(tile.frame, time), state, scratch, slope);
  }

  void begin_tiles(const T* y0) {
    for (Tile<T>* tile = begin; tile != end; ++tile) {
      arithmetic.load(tile->frame, y0 + tile->first * dim(), tile->y);
      write(*tile, tile->y, 0);
    }
  }

  void write(const Tile<T>& tile, const T* state, size_t time) {
    T* const to = ys + (int64_t(time) * solve.batch_ + tile.first) * dim();
    arithmetic.store(tile.frame, state, to);
  }

  // Where stage i of the step at hand is written down; null if it is not.
  typename Tape::template Stage<T> taped(const Tile<T>& tile, size_t i) const {
    if (!tapes) return {nullptr, nullptr};
    return options.tape->template stage<T>(kept, &tile - solve.tiles_.data(), int64_t(i),
                                           tile.frame);
  }

  // The slope of stage i at `state`, or at a copy of it that is written down.
  void evaluate_stage(Tile<T>& tile, size_t i, T time, T* state) {
    const auto [copy, record] = taped(tile, i);
    if (!copy) return evaluate(tile, time, state, tile.k[i]);
    copy_tile(tile.frame.extent(dim()), state, copy);
    field.record(tile.frame, arithmetic.times(tile.frame, time), copy, record, tile.k[i]);
  }

  // The stages of the step at hand; those at its end are taken just before it, unless steps along a
  // grid are not `perturbed`.
  void take_stages(Tile<T>& tile, bool perturbed) {
    const double step = course.step;
    for (size_t i = 1; i < tableau.stages.size(); ++i) {
      arithmetic.combine(tile.frame, tile.y, tile.k.data(), tableau.stages[i], step, tile.stage);
      const double c = tableau.times[i];
      const T time = c == 1 && !perturbed ? as_time<T>(course.t1) : stage_time<T>(course, c);
      evaluate_stage(tile, i, time, tile.stage);
    }
    if (!tableau.fsal) {
      arithmetic.combine(tile.frame, tile.y, tile.k.data(), tableau.solution, step, tile.y1);
    }
  }

  void keep(const Tile<T>& tile, int64_t step) {
    if (!options.keep_states) return;
    const int64_t row = solve.batch_ * dim();
    T* const to = solve.kept_.data() + step * options.parts() * row + tile.first * dim();
    arithmetic.store(tile.frame, tile.y, to);
    if (options.adaptive) arithmetic.store(tile.frame, tile.k[0], to + row);
  }

  void fixed() {
    const std::vector<double>&times = options.times, &grid = options.grid;
    for (Tile<T>* tile = begin; tile != end; ++tile) {
      size_t next = 1;
      for (size_t i = 0; i + 1 < grid.size(); ++i) {
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

  // Whether there is what is no number among the first slopes of the step at hand, for the message
  // of a solve that cannot go on.
  void look(const Tile<T>& tile, size_t slopes) {
    const Extent extent = tile.frame.extent(dim());
    for (size_t j = 0; j < slopes; ++j) {
      for (int64_t r = 0; r < extent.rows; ++r) {
        const T* const row = tile.k[j] + r * extent.stride;
        for (int64_t i = 0; i < extent.columns; ++i) {
          if (std::isnan(row[i])) solve.saw_nan_ = true;
          if (std::isinf(row[i])) solve.saw_infinity_ = true;
        }
      }
    }
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
};

}  // namespace fastnode
