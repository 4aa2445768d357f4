// Arithmetic on tiles whose samples each have numbers of their own.
#pragma once

#include <algorithm>
#include <vector>

#include "mlp/cpu/field.h"

namespace fastnode {

template <class T>
class SlotArithmetic {
 public:
  // For tiles up to `largest` and sums of up to `terms`.
  SlotArithmetic(const MlpField<T>& field, const Frame& largest, size_t terms) : field_(field) {
    const int64_t columns = largest.extent(field.dim()).columns;
    coefficients_.resize(terms * size_t(columns));
    times_.resize(size_t(std::max(columns, largest.samples)));
    terms_.reserve(terms);
  }

  // out = y + sum_j weight(slot, j) k[which[j]]; without y where it is null. What only fills
  // vectors up has weights of zero.
  template <class F>
  void combine(const Frame& frame, int64_t slots, const T* y, const std::vector<T*>& k,
               const std::vector<int>& which, F weight, T* out) {
    each_group(frame, slots, k, which, weight, [&](int64_t offset, const Extent& part) {
      field_.kernels->combine(y ? y + offset : nullptr, terms_.data(), coefficients_.data(),
                              !frame.by_sample, int(which.size()), part, out + offset);
    });
  }

  // f(offset, extent) where terms() and coefficients() hold for: once if samples are columns, with
  // coefficients for each of them, else for each sample.
  template <class F, class G>
  void each_group(const Frame& frame, int64_t slots, const std::vector<T*>& k,
                  const std::vector<int>& which, F weight, G f) {
    const Extent extent = frame.extent(field_.dim());
    const size_t columns = size_t(extent.columns);
    if (coefficients_.size() < which.size() * columns) coefficients_.resize(which.size() * columns);
    terms_.resize(which.size());
    if (!frame.by_sample) {
      for (size_t j = 0; j < which.size(); ++j) {
        terms_[j] = k[size_t(which[j])];
        T* const to = coefficients_.data() + j * columns;
        for (int64_t s = 0; s < slots; ++s) to[s] = T(weight(s, j));
        std::fill(to + slots, to + columns, T(0));
      }
      return f(0, extent);
    }
    for (int64_t s = 0; s < slots; ++s) {
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
  const T* times(int64_t slots, F time) {
    for (int64_t s = 0; s < slots; ++s) times_[size_t(s)] = time(s);
    return times_.data();
  }

  const T* const* terms() const { return terms_.data(); }
  const T* coefficients() const { return coefficients_.data(); }

 private:
  const MlpField<T>& field_;
  std::vector<T> coefficients_, times_;
  std::vector<const T*> terms_;
};

}  // namespace fastnode
