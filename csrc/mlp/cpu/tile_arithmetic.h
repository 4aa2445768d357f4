// What one thread does with its tiles: shared by the solve and its gradient.
#pragma once

#include <algorithm>
#include <cmath>

#include "mlp/cpu/solve_joint.h"
#include "step_control/rk_times.h"

namespace fastnode {

// The first of the derivatives given, and the second minus the first.
inline const Weights kFirst{{0}, {1.0}}, kChange{{1, 0}, {1.0, -1.0}};

// Arithmetic on tiles with memory of a thread's own.
template <class T>
class TileArithmetic {
 public:
  // For sums of up to `terms` stage derivatives of tiles up to `largest`.
  TileArithmetic(const Field<T>& field, const Frame& largest, size_t terms)
      : field_(field),
        coefficients_(terms),
        times_(size_t(moments(largest))),
        sums_(size_t(largest.extent(field.dim()).columns)),
        terms_(terms) {}

  int64_t moments(const Frame& frame) const {
    return frame.sample_major ? frame.samples : frame.width();
  }

  // out = y + sum_j scale w_j k_j; without y where it is null.
  void combine(const Frame& frame, const T* y, T* const* k, const Weights& weights, double scale,
               T* out) {
    const int count = prepare(k, weights, scale);
    field_.kernels->combine(y, terms_.data(), coefficients_.data(), false, count,
                            frame.extent(field_.dim()), out);
  }

  // The sum of squares of scale sum_j w_j k_j over the tolerances, of a part of the features;
  // samples and features that are there only to fill vectors do not count.
  double squares(const Frame& frame, const Features& part, const T* y0, const T* y1, T* const* k,
                 const Weights& weights, double scale, double rtol, double atol) {
    const int count = prepare(k, weights, scale);
    const T relative = T(rtol), absolute = T(atol);
    Extent extent = frame.extent(field_.dim());
    int64_t first = part.begin, last = part.end;
    if (!frame.sample_major) {
      // Features are rows: those of the part alone.
      const int64_t skipped = part.begin * extent.stride;
      extent.rows = part.end - part.begin;
      y0 += skipped;
      y1 += skipped;
      for (int j = 0; j < count; ++j) terms_[size_t(j)] += skipped;
      first = 0;
      last = frame.samples;
    }
    field_.kernels->error(y0, y1, terms_.data(), coefficients_.data(), &relative, &absolute, false,
                          count, extent, sums_.data());
    double total = 0;
    for (int64_t i = first; i < last; ++i) total += double(sums_[size_t(i)]);
    return total;
  }

  // Rows [samples, dim] into a tile.
  void load(const Frame& frame, const T* from, T* to) const {
    const int64_t dim = field_.dim(), width = frame.width();
    if (frame.sample_major) {
      for (int64_t s = 0; s < frame.samples; ++s) {
        std::copy_n(from + s * dim, dim, to + s * frame.stride(dim));
      }
    } else if (frame.samples == width && dim % frame.lanes == 0) {
      field_.kernels->transpose(from, width, dim, to, width);
    } else {
      // Vectors are filled up with the last sample, so that padding is as well-behaved as the data.
      for (int64_t s = 0; s < width; ++s) {
        const T* const row = from + std::min(s, frame.samples - 1) * dim;
        for (int64_t d = 0; d < dim; ++d) to[d * width + s] = row[d];
      }
    }
  }

  void store(const Frame& frame, const T* from, T* to) const {
    const int64_t dim = field_.dim(), width = frame.width();
    if (frame.sample_major) {
      for (int64_t s = 0; s < frame.samples; ++s) {
        std::copy_n(from + s * frame.stride(dim), dim, to + s * dim);
      }
    } else if (frame.samples == width) {
      field_.kernels->transpose(from, dim, width, to, dim);
    } else {
      for (int64_t s = 0; s < frame.samples; ++s) {
        for (int64_t d = 0; d < dim; ++d) to[s * dim + d] = from[d * width + s];
      }
    }
  }

  const T* times(const Frame& frame, T t) {
    std::fill_n(times_.data(), moments(frame), t);
    return times_.data();
  }

 private:
  int prepare(T* const* k, const Weights& weights, double scale) {
    const size_t count = weights.stages.size();
    if (coefficients_.size() < count) {
      coefficients_.resize(count);
      terms_.resize(count);
    }
    for (size_t j = 0; j < count; ++j) {
      terms_[j] = k[weights.stages[j]];
      coefficients_[j] = T(scale * weights.values[j]);
    }
    return int(count);
  }

  const Field<T>& field_;
  std::vector<T> coefficients_, times_, sums_;
  std::vector<const T*> terms_;
};

template <class T>
void copy_tile(const Extent& extent, const T* from, T* to) {
  for (int64_t r = 0; r < extent.rows; ++r) {
    std::copy_n(from + r * extent.stride, extent.columns, to + r * extent.stride);
  }
}

template <class T>
double dot(const Frame& frame, const T* a, const T* b, int64_t dim) {
  double total = 0;
  for (int64_t s = 0; s < frame.samples; ++s) {
    for (int64_t d = 0; d < dim; ++d) {
      const int64_t i = frame.place(d, s, dim);
      total += double(a[i]) * double(b[i]);
    }
  }
  return total;
}

// Weights of dense output at x in [0, 1], in units of the step.
inline Weights dense_weights(const Tableau& tableau, double x) {
  Weights weights;
  for (const Polynomial& each : tableau.dense) {
    weights.stages.push_back(each.stage);
    weights.values.push_back(each.at(x));
  }
  return weights;
}

// Those of its derivative.
inline Weights dense_derivative_weights(const Tableau& tableau, double x) {
  Weights weights;
  for (const Polynomial& each : tableau.dense) {
    weights.stages.push_back(each.stage);
    weights.values.push_back(each.derivative_at(x));
  }
  return weights;
}

}  // namespace fastnode
