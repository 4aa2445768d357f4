// The samples that one thread solves at a time, each with a step of its own, and arithmetic on
// them.
#pragma once

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "mlp/cpu/tile_arithmetic.h"
#include "step_control/rk_control.h"

namespace fastnode {

// A sample in a tile.
struct TileSample {
  int64_t index;  // in the batch
  double end;
  Course course;
  int64_t next = 1;       // the output to come
  bool accepted = false;  // the step that was tried last
  bool running = true;
};

// Sums of stage derivatives with weights and times of each sample's own.
template <class T>
class PerSampleArithmetic {
 public:
  // For tiles up to `largest` and sums of up to `terms`.
  PerSampleArithmetic(const Field<T>& field, const Frame& largest, size_t terms) : field_(field) {
    const int64_t columns = largest.extent(field.dim()).columns;
    coefficients_.resize(terms * size_t(columns));
    times_.resize(size_t(std::max(columns, largest.samples)));
    terms_.reserve(terms);
  }

  // out = y + sum_j weight(s, j) k[which[j]] for samples s; without y where it is null. Samples
  // that only fill up vectors have weights of zero.
  template <class F>
  void combine(const Frame& frame, int64_t samples, const T* y, const std::vector<T*>& k,
               const std::vector<int>& which, F weight, T* out) {
    each_group(frame, samples, k, which, weight, [&](int64_t offset, const Extent& part) {
      field_.kernels->combine(y ? y + offset : nullptr, terms_.data(), coefficients_.data(),
                              !frame.sample_major, int(which.size()), part, out + offset);
    });
  }

  // f(offset, extent) with terms() and coefficients() set: once if samples are columns, with
  // coefficients for each of them, else for each sample.
  template <class F, class G>
  void each_group(const Frame& frame, int64_t samples, const std::vector<T*>& k,
                  const std::vector<int>& which, F weight, G f) {
    const Extent extent = frame.extent(field_.dim());
    const size_t columns = size_t(extent.columns);
    if (coefficients_.size() < which.size() * columns) coefficients_.resize(which.size() * columns);
    terms_.resize(which.size());
    if (!frame.sample_major) {
      for (size_t j = 0; j < which.size(); ++j) {
        terms_[j] = k[size_t(which[j])];
        T* const to = coefficients_.data() + j * columns;
        for (int64_t s = 0; s < samples; ++s) to[s] = T(weight(s, j));
        std::fill(to + samples, to + columns, T(0));
      }
      return f(0, extent);
    }
    for (int64_t s = 0; s < samples; ++s) {
      const int64_t offset = s * extent.stride;
      for (size_t j = 0; j < which.size(); ++j) {
        terms_[j] = k[size_t(which[j])] + offset;
        coefficients_[j] = T(weight(s, j));
      }
      f(offset, Extent{1, extent.columns, extent.stride});
    }
  }

  // A time for each sample.
  template <class F>
  const T* times(int64_t samples, F time) {
    for (int64_t s = 0; s < samples; ++s) times_[size_t(s)] = time(s);
    return times_.data();
  }

  const T* const* terms() const { return terms_.data(); }
  const T* coefficients() const { return coefficients_.data(); }

 private:
  const Field<T>& field_;
  std::vector<T> coefficients_, times_;
  std::vector<const T*> terms_;
};

// States and stage derivatives of up to `capacity` samples, in a thread's own memory.
template <class T>
class SampleTile {
 public:
  SampleTile(const Field<T>& field, int64_t capacity, const Tableau& tableau)
      : k(tableau.stages.size() + tableau.further.size()),
        field_(field),
        frame_(field.frame(capacity)),
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

  // Resizes to `samples`; the first ones keep their numbers unless the tile grows.
  void resize(int64_t samples) {
    const Frame before = frame_;
    frame_ = make_frame(before.sample_major, samples, before.lanes);
    const int64_t moved = frame_.front() - before.front(), columns = frame_.columns_;
    if (frame_.sample_major || moved == 0) return;
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

  // The numbers of sample s in `x` from or to a row.
  void put(T* x, int64_t s, const T* row) const {
    for (int64_t d = 0; d < field_.dim(); ++d) x[frame_.place(d, s, field_.dim())] = row[d];
  }
  void get(const T* x, int64_t s, T* row) const {
    for (int64_t d = 0; d < field_.dim(); ++d) row[d] = x[frame_.place(d, s, field_.dim())];
  }
  void move(T* x, int64_t from, int64_t to) const { copy(x, from, x, to); }
  void copy(const T* x, int64_t s, T* out) const { copy(x, s, out, s); }

  // derivative = field(time(s), state).
  template <class F>
  void evaluate(int64_t samples, F time, T* state, T* derivative) {
    field_.value(frame_, arithmetic_.times(samples, time), state, scratch_, derivative);
  }

  // out = y + sum_j weight(s, j) k_j over the stages given.
  template <class F>
  void combine(int64_t samples, const std::vector<int>& stages, F weight, T* out) {
    arithmetic_.combine(frame_, samples, y, k, stages, weight, out);
  }

  // For each sample the root mean square of sum_j weight(s, j) k_j over its tolerances: the largest
  // of its parts, or if `whole` that of all of it.
  template <class F, class G>
  void norms(int64_t samples, const T* after, const std::vector<int>& stages, F weight, G tolerance,
             std::vector<double>& out, bool whole = false) {
    const Extent extent = frame_.extent(field_.dim());
    const int64_t columns = extent.columns;
    T *rtol = tolerances_.data(), *atol = rtol + columns, *sums = atol + columns;
    const int count = int(stages.size());
    out.assign(size_t(samples), 0.0);
    const auto enter = [&](int64_t sample, double total, const Features& part) {
      const double found = std::sqrt(total / double(part.end - part.begin));
      // NaN is the largest of all.
      if (!(found <= out[size_t(sample)])) out[size_t(sample)] = found;
    };
    if (!frame_.sample_major) {
      std::fill(rtol, atol, T(0));
      std::fill(atol, sums, T(1));
      for (int64_t s = 0; s < samples; ++s) std::tie(rtol[s], atol[s]) = tolerance(s);
    }
    arithmetic_.each_group(
        frame_, samples, k, stages, weight, [&](int64_t offset, const Extent& part) {
          const int64_t sample = frame_.sample_major ? offset / extent.stride : 0;
          if (frame_.sample_major) std::tie(*rtol, *atol) = tolerance(sample);
          for (int64_t p = 0; p < (whole ? 1 : field_.parts()); ++p) {
            const Features of = whole ? Features{0, field_.dim()} : field_.part(p);
            // Where samples are columns, features are rows: those of the part alone.
            const int64_t skipped = frame_.sample_major ? 0 : of.begin * extent.stride;
            const Extent rows =
                frame_.sample_major ? part : Extent{of.end - of.begin, part.columns, part.stride};
            shifted_.assign(arithmetic_.terms(), arithmetic_.terms() + count);
            for (const T*& each : shifted_) each += skipped;
            const int64_t from = offset + skipped;
            field_.kernels->error(y + from, after + from, shifted_.data(),
                                  arithmetic_.coefficients(), rtol, atol, !frame_.sample_major,
                                  count, rows, sums);
            if (frame_.sample_major) {
              double total = 0;
              for (int64_t d = of.begin; d < of.end; ++d) total += double(sums[d]);
              enter(sample, total, of);
            } else {
              for (int64_t s = 0; s < samples; ++s) enter(s, double(sums[s]), of);
            }
          }
        });
  }

  T *y, *y1, *stage, *further, *output;
  std::vector<T*> k;  // stage derivatives

 private:
  void copy(const T* x, int64_t from, T* out, int64_t to) const {
    for (int64_t d = 0; d < field_.dim(); ++d) {
      out[frame_.place(d, to, field_.dim())] = x[frame_.place(d, from, field_.dim())];
    }
  }

  const Field<T>& field_;
  Frame frame_;
  Arena memory_;
  PerSampleArithmetic<T> arithmetic_;
  T* scratch_;
  std::vector<T> tolerances_;
  std::vector<const T*> shifted_;
};

}  // namespace fastnode
