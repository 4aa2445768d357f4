// Adaptive steps with one size for all samples.
#pragma once

#include "mlp/cpu/solve_joint_worker.h"

namespace fastnode {

// All threads hold the same control and decide alike.
template <class T>
struct MlpSolve<T>::Adaptive : Worker {
  using Worker::arithmetic;
  using Worker::attempts;
  using Worker::barrier;
  using Worker::before;
  using Worker::begin;
  using Worker::dim;
  using Worker::direction;
  using Worker::earlier;
  using Worker::end;
  using Worker::evaluate;
  using Worker::evaluations;
  using Worker::failed;
  using Worker::field;
  using Worker::finish;
  using Worker::h;
  using Worker::keep;
  using Worker::kept;
  using Worker::leads;
  using Worker::limit;
  using Worker::look;
  using Worker::options;
  using Worker::output;
  using Worker::ratio;
  using Worker::rejected;
  using Worker::room;
  using Worker::solve;
  using Worker::stepped;
  using Worker::stuck;
  using Worker::t;
  using Worker::t_before;
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
    double h0 = d0 < 1e-5 || d1 < 1e-5 ? 1e-6 : 0.01 * d0 / d1;
    h0 = std::min(h0, std::abs(limit - t));
    const double signed_h = std::copysign(h0, limit - t);
    sums = next_sums();
    for (Tile<T>* tile = begin; tile != end; ++tile) {
      arithmetic.combine(tile->frame, tile->y, tile->k.data(), kFirstSlope, signed_h, tile->stage);
      evaluate(*tile, T(t + signed_h), tile->stage, tile->k[1]);
      sums[tile - solve.tiles_.data()] = squares(*tile, tile->k.data(), kRise);
    }
    barrier.wait();
    ++evaluations;
    const double d2 = rms(sums) / h0;
    h = h0;
    if (!std::isfinite(d2)) return true;
    const double h1 = d1 <= 1e-15 && d2 <= 1e-15
                          ? std::max(1e-6, h0 * 1e-3)
                          : std::pow(0.01 / std::max(d1, d2), 1.0 / tableau.order);
    h = std::min(100 * h0, h1);
    return true;
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
      double* const sums = next_sums();
      tried = t1;
      for (Tile<T>* tile = begin; tile != end; ++tile) {
        take_stages(*tile, t1, true);
        const int64_t place = tile - solve.tiles_.data();
        sums[place] = arithmetic.squares(tile->frame, tile->y, tile->y1, tile->k.data(),
                                         tableau.error, step, options.rtol, options.atol);
        if (!options.pair) continue;
        for (int i = 0; i < 2; ++i) {
          const Weights& weights = i ? options.pair->states : options.pair->slopes;
          sums[(i + 1) * solve.tiles() + place] =
              arithmetic.squares(tile->frame, tile->y, tile->y, tile->k.data(), weights, 1, 0, 1);
        }
      }
      evaluations += int64_t(tableau.stages.size()) - 1;
      barrier.wait();
      ratio = rms(sums);
      const double following = options.controller.next_step(taken, ratio, before, earlier);
      if (!options.first_step_alone && !options.controller.accepts(taken, ratio)) {
        ++rejected;
        stuck = following >= taken;
        h = following;
        continue;
      }
      if (leads) record(t1, sums);
      keep_step();
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

  // The end of the step that was tried last, or t if it was accepted.
  double tried = options.times.front();

  // Where no step can be tried any more.
  void give_up() {
    for (Tile<T>* tile = begin; tile != end; ++tile) {
      // Another tile's slopes may lie over those of this one.
      if (tried != t) take_stages(*tile, tried, true);
      look(*tile, tried != t ? tableau.stages.size() : 1);
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
      give_up();
      if (leads) trace.ending = Ending::kBadStart;
      return;
    }
    h = options.controller.clip(h);
    if (options.first_step_alone) {
      return advance() ? finish() : give_up();
    }
    tapes = options.tape && options.tape->steps() > 0;
    const std::vector<double>& times = options.times;
    for (size_t i = 1; i < times.size();) {
      if (options.counted_anew) attempts = 0;
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
    const double step = t - t_before;
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
