// The samples that one thread holds, each with a step of its own, and arithmetic on them.
#pragma once

#include <cmath>
#include <tuple>
#include <vector>

#include "mlp/cpu/per_sample_arithmetic.h"
#include "mlp/cpu/tile_arithmetic.h"
#include "step_control/rk_control.h"

namespace fastnode {

// A sample in a tile.
struct Slot {
  int64_t sample;
  double end;
  Course course;
  int64_t next = 1;       // the output to come
  bool accepted = false;  // the step that was tried last
  bool running = true;
};

// States and slopes of up to `capacity` samples, in memory of a thread's own.
template <class T>
class SampleTile {
 public:
  SampleTile(const MlpField<T>& field, bool by_sample, int64_t capacity, const Tableau& tableau)
      : k(tableau.stages.size() + tableau.further.size()),
        field_(field),
        frame_(make_frame(by_sample, capacity, field.kernels->lanes)),
        arithmetic_(field, frame_, k.size() + 1) {
    const int64_t size = frame_.front() + frame_.size(field.dim());
    // y, y1, a stage, one for dense output, and the output.
    memory_.reserve(
        int64_t(k.size() + 5) * Arena::bytes<T>(size) + Arena::bytes<T>(field.scratch(frame_)),
        true);
    for (T** each : {&y, &y1, &stage, &further, &output}) {
      *each = memory_.take<T>(size) + frame_.front();
    }
    for (T*& each : k) each = memory_.take<T>(size) + frame_.front();
    scratch_ = memory_.take<T>(field.scratch(frame_));
    if (tableau.fsal) stage = y1;
    const int64_t columns = frame_.extent(field.dim()).columns;
    tolerances_.resize(size_t(3 * columns));
  }

  const Frame& frame() const { return frame_; }

  // Room for `samples`, of which the first ones stay unless the tile grows.
  void resize(int64_t samples) {
    const Frame before = frame_;
    frame_ = make_frame(before.by_sample, samples, before.lanes);
    const int64_t moved = frame_.front() - before.front(), columns = frame_.columns_;
    if (frame_.by_sample || moved == 0) return;
    if (moved < 0) {
      for (T* each : {y, k[0]}) {
        for (int64_t d = 0; d < field_.dim(); ++d) {
          std::copy_n(each + d * before.columns_, columns, each + moved + d * columns);
        }
      }
    }
    const bool shared = stage == y1;
    for (T** each : {&y, &y1, &stage, &further, &output}) *each += moved;
    for (T*& each : k) each += moved;
    if (shared) stage = y1;
  }

  // One sample's numbers in `x` from or to a row.
  void put(T* x, int64_t slot, const T* row) const {
    for (int64_t d = 0; d < field_.dim(); ++d) x[frame_.place(d, slot, field_.dim())] = row[d];
  }
  void get(const T* x, int64_t slot, T* row) const {
    for (int64_t d = 0; d < field_.dim(); ++d) row[d] = x[frame_.place(d, slot, field_.dim())];
  }
  void move(T* x, int64_t from, int64_t to) const { copy(x, from, x, to); }
  void copy(const T* x, int64_t slot, T* out) const { copy(x, slot, out, slot); }

  // slope = field(t, state), with time(slot).
  template <class F>
  void evaluate(int64_t slots, F time, T* state, T* slope) {
    field_.value(frame_, arithmetic_.times(slots, time), state, scratch_, slope);
  }

  // out = y + sum_j weight(slot, j) k_j over the slopes `stages`.
  template <class F>
  void combine(int64_t slots, const std::vector<int>& stages, F weight, T* out) {
    arithmetic_.combine(frame_, slots, y, k, stages, weight, out);
  }

  // For each slot the root mean square of sum_j weight(slot, j) k_j over its tolerances.
  template <class F, class G>
  void norms(int64_t slots, const T* after, const std::vector<int>& stages, F weight, G tolerance,
             std::vector<double>& out) {
    const Extent extent = frame_.extent(field_.dim());
    const int64_t columns = extent.columns, dim = field_.dim();
    T *rtol = tolerances_.data(), *atol = rtol + columns, *sums = atol + columns;
    const int count = int(stages.size());
    out.resize(size_t(slots));
    if (!frame_.by_sample) {
      std::fill(rtol, atol, T(0));
      std::fill(atol, sums, T(1));
      for (int64_t s = 0; s < slots; ++s) std::tie(rtol[s], atol[s]) = tolerance(s);
    }
    arithmetic_.each_group(frame_, slots, k, stages, weight,
                           [&](int64_t offset, const Extent& part) {
                             const int64_t slot = frame_.by_sample ? offset / extent.stride : 0;
                             if (frame_.by_sample) std::tie(*rtol, *atol) = tolerance(slot);
                             field_.kernels->error(y + offset, after + offset, arithmetic_.terms(),
                                                   arithmetic_.coefficients(), rtol, atol,
                                                   !frame_.by_sample, count, part, sums);
                             if (frame_.by_sample) {
                               double total = 0;
                               for (int64_t d = 0; d < dim; ++d) total += double(sums[d]);
                               out[size_t(slot)] = std::sqrt(total / double(dim));
                             } else {
                               for (int64_t s = 0; s < slots; ++s)
                                 out[size_t(s)] = std::sqrt(double(sums[s]) / double(dim));
                             }
                           });
  }

  T *y, *y1, *stage, *further, *output;
  std::vector<T*> k;  // slopes

 private:
  void copy(const T* x, int64_t from, T* out, int64_t to) const {
    for (int64_t d = 0; d < field_.dim(); ++d) {
      out[frame_.place(d, to, field_.dim())] = x[frame_.place(d, from, field_.dim())];
    }
  }

  const MlpField<T>& field_;
  Frame frame_;
  Arena memory_;
  SlotArithmetic<T> arithmetic_;
  T* scratch_;
  std::vector<T> tolerances_;
};

}  // namespace fastnode
