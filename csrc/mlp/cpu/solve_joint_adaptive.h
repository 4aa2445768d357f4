// Adaptive steps with one size for all samples.
#pragma once

#include "mlp/cpu/solve_joint_worker.h"
#include "step_control/stiffness.h"

namespace fastnode {

// All threads hold the same control and decide alike.
template <class T>
struct MlpSolve<T>::Adaptive : Worker {
  using Worker::arithmetic;
  using Worker::barrier;
  using Worker::begin;
  using Worker::course;
  using Worker::dim;
  using Worker::direction;
  using Worker::end;
  using Worker::evaluate;
  using Worker::evaluations;
  using Worker::failed;
  using Worker::field;
  using Worker::finish;
  using Worker::keep;
  using Worker::kept;
  using Worker::leads;
  using Worker::limit;
  using Worker::look;
  using Worker::options;
  using Worker::output;
  using Worker::room;
  using Worker::solve;
  using Worker::stepped;
  using Worker::tableau;
  using Worker::take_stages;
  using Worker::tapes;
  using Worker::trace;
  using Worker::turn;
  using Worker::Worker;
  using Worker::write;

  // Sums of all tiles by all threads, in the order of the tiles whoever owns them: up to three.
  // Those of a turn are read while those of the next are written.
  double* next_sums() { return solve.sums_.data() + (turn++ % 2) * 3 * solve.tiles(); }

  double rms(const double* sums) const {
    double total = 0;
    for (int64_t i = 0; i < solve.tiles(); ++i) total += sums[i];
    return std::sqrt(total / double(solve.batch_ * dim()));
  }

  double squares(const Tile<T>& tile, T* const* k, const Weights& weights) {
    return arithmetic.squares(tile.frame, tile.y, tile.y, k, weights, 1, options.rtol,
                              options.atol);
  }

  // fastnode.control.controllers.initial_step, which gives the source. The trial's slope goes to
  // k[1].
  bool choose_first_step() {
    double* sums = next_sums();
    for (Tile<T>* tile = begin; tile != end; ++tile) {
      double* const sum = sums + (tile - solve.tiles_.data());
      sum[0] = squares(*tile, &tile->y, kFirstSlope);
      sum[solve.tiles()] = squares(*tile, tile->k.data(), kFirstSlope);
    }
    barrier.wait();
    const double d0 = rms(sums), d1 = rms(sums + solve.tiles());
    if (!std::isfinite(d0) || !std::isfinite(d1)) return false;
    const double h0 = Controller::trial_step(d0, d1, std::abs(limit - course.t));
    const double step = direction * h0;
    sums = next_sums();
    for (Tile<T>* tile = begin; tile != end; ++tile) {
      arithmetic.combine(tile->frame, tile->y, tile->k.data(), kFirstSlope, step, tile->stage);
      evaluate(*tile, as_time<T>(course.t + step), tile->stage, tile->k[1]);
      sums[tile - solve.tiles_.data()] = squares(*tile, tile->k.data(), kRise);
    }
    barrier.wait();
    ++evaluations;
    course.h = options.controller.first_step(h0, d1, rms(sums), LibraryPower());
    return true;
  }

  bool advance() {
    if (stepped) move_on();
    stepped = false;
    while (true) {
      failed = failure_of(course, options.max_num_steps) != Failure::kNone;
      if (failed) return false;
      plan(course, limit);
      double* const sums = next_sums();
      for (Tile<T>* tile = begin; tile != end; ++tile) {
        take_stages(*tile, true);
        const int64_t place = tile - solve.tiles_.data();
        sums[place] = arithmetic.squares(tile->frame, tile->y, tile->y1, tile->k.data(),
                                         tableau.error, course.step, options.rtol, options.atol);
        if (!options.pair) continue;
        for (int i = 0; i < 2; ++i) {
          const Weights& weights = i ? options.pair->states : options.pair->slopes;
          sums[(i + 1) * solve.tiles() + place] =
              arithmetic.squares(tile->frame, tile->y, tile->y, tile->k.data(), weights, 1, 0, 1);
        }
      }
      evaluations += int64_t(tableau.stages.size()) - 1;
      barrier.wait();
      const bool accepted =
          settle(course, options.controller, rms(sums), LibraryPower(), options.first_step_alone);
      if (!accepted) continue;
      if (leads) record(sums);
      keep_step();
      stepped = true;
      return true;
    }
  }

  // Where no step can be tried any more.
  void give_up() {
    for (Tile<T>* tile = begin; tile != end; ++tile) {
      const bool rejected = course.t1 != course.t;
      // Another tile's slopes may lie over those of this one.
      if (rejected) take_stages(*tile, true);
      look(*tile, rejected ? tableau.stages.size() : 1);
    }
    finish();
  }

  void keep_step() {
    if (options.keep_states && kept == room) {
      // What grows may move: nobody may write meanwhile.
      room *= 2;
      barrier.wait();
      if (leads) solve.kept_.reserve(room * options.parts() * solve.batch_ * dim());
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

  void record(const double* sums) {
    trace.edges.push_back(course.t);
    trace.error.push_back(course.ratio);
    const int64_t tiles = solve.tiles();
    trace.stiffness.push_back(options.pair ? stiffness_of(rms(sums + tiles), rms(sums + 2 * tiles),
                                                          options.pair->stability)
                                           : std::numeric_limits<double>::quiet_NaN());
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
    for (Tile<T>* tile = begin; tile != end; ++tile)
      evaluate(*tile, as_time<T>(course.t), tile->y, tile->k[0]);
    ++evaluations;
    if (options.first_step) {
      course.h = *options.first_step;
    } else if (!choose_first_step()) {
      give_up();
      if (leads) trace.ending = Ending::kBadStart;
      return;
    }
    course.h = options.controller.clip(course.h);
    if (options.first_step_alone) {
      return advance() ? finish() : give_up();
    }
    tapes = options.tape && options.tape->steps() > 0;
    const std::vector<double>& times = options.times;
    const double &t = course.t, &t_before = course.t_before;
    for (size_t i = 1; i < times.size();) {
      if (options.counted_anew) course.attempts = 0;
      while ((t - times[i]) * direction < 0) {
        if (!advance()) return give_up();
      }
      const double step = t - t_before;
      bool further = false;
      for (; i < times.size() && (t - times[i]) * direction > 0; ++i) {
        if (!further) take_further_stages();
        further = true;
        const Weights weights = dense_weights(tableau, (times[i] - t_before) / step);
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

  void take_further_stages() {
    const double t_before = course.t_before, step = course.t - t_before;
    const size_t stages = tableau.stages.size();
    for (size_t i = 0; i < tableau.further.size(); ++i) {
      for (Tile<T>* tile = begin; tile != end; ++tile) {
        T* const state = tile->stage == tile->y1 ? further_state(*tile) : tile->stage;
        arithmetic.combine(tile->frame, tile->y, tile->k.data(), tableau.further[i], step, state);
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
};

}  // namespace fastnode
