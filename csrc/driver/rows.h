// Arithmetic on batches [b, ...] of float or double whose rows have a step of their own.
#pragma once

#include <vector>

#include "common/terms.h"
#include "driver/arithmetic.h"
#include "ops/common.h"

namespace fastnode {

// The stages that `weights` names, `offset` elements from their beginning.
template <class T>
Terms<T> row_terms(const StageDerivatives& k, const Weights& weights, int64_t offset = 0) {
  Terms<T> terms;
  terms.count = int(weights.stages.size());
  for (int j = 0; j < terms.count; ++j) {
    terms.k[j] = k[weights.stages[j]].const_data_ptr<T>() + offset;
    terms.c[j] = T(weights.values[j]);
  }
  return terms;
}

// out = y + h sum_j w_j k_j.
void combine_rows(const at::Tensor& y, const StageDerivatives& k, const Weights& weights,
                  const std::vector<double>& h, const at::Tensor& out);

// sqrt(mean((h sum_j w_j k_j / (atol + rtol max(|y0|, |y1|)))^2)) for each row.
void norm_rows(const at::Tensor& y0, const at::Tensor& y1, const StageDerivatives& k,
               const Weights& weights, const std::vector<double>& h,
               const std::vector<double>& rtol, const std::vector<double>& atol,
               std::vector<double>& out);

// Copies of some rows.
at::Tensor take_rows(const at::Tensor& x, const std::vector<int64_t>& rows);

// Keeps the entries `rows`, which rise.
template <class X>
void keep(std::vector<X>& values, const std::vector<int64_t>& rows) {
  for (size_t i = 0; i < rows.size(); ++i) values[i] = values[rows[i]];
  values.resize(rows.size());
}

}  // namespace fastnode
