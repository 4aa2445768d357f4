#include "driver/solve_loop.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>

#include <cstring>

#include "ops/common.h"
#include "ops/result_pool.h"
#include "step_control/dense_output.h"

namespace fastnode {

std::vector<int> dense_stages(const Tableau& tableau) {
  std::vector<int> stages;
  for (const Polynomial& row : tableau.dense) stages.push_back(row.stage);
  return stages;
}

void add_dense_weights(const Tableau& tableau, double t, double t1, double time,
                       std::vector<double>& c) {
  for (const Polynomial& row : tableau.dense) c.push_back(dense_weight(row, t, t1, time));
}

void take_further_stages(Field& field, const Tableau& tableau, const Arithmetic& arithmetic,
                         double t, double t1, const at::Tensor& y, StageDerivatives& k) {
  const double h = t1 - t;
  Handle stage;
  for (size_t i = k.size() - tableau.stages.size(); i < tableau.further.size(); ++i) {
    arithmetic.combine(y, k, tableau.further[i], h, stage);
    at::Tensor derivative;
    field(t + tableau.further_times[i] * h, stage, 0, derivative);
    k.push_back(std::move(derivative));
  }
}

at::Tensor Step::at(double time) {
  if (time == t1) return y1;
  take_further_stages(*field, *tableau, Arithmetic(y), t, t1, y, k);
  std::vector<double> c;
  add_dense_weights(*tableau, t, t1, time, c);
  Handle out;
  Arithmetic(y).combine(y, k, dense_stages(*tableau), c.data(), out);
  return out.tensor();
}

void take_stages(Field& field, const Tableau& tableau, const Arithmetic& arithmetic, double t,
                 double t1, const at::Tensor& y, StageDerivatives& k, Handle& stage, bool perturb) {
  const double h = t1 - t;
  for (size_t i = 1; i < tableau.stages.size(); ++i) {
    arithmetic.combine(y, k, tableau.stages[i], h, stage);
    const double c = tableau.times[i];
    field.release(k[i]);
    if (c == 1) {
      field(t1, stage, perturb ? -1 : 0, k[i]);
    } else {
      field(t + c * h, stage, 0, k[i]);
    }
  }
}

void* Outputs::next(int64_t count) {
  if (!block_.defined()) {
    std::vector<int64_t> shape = {count_};
    shape.insert(shape.end(), like_.sizes().begin(), like_.sizes().end());
    block_ = like_.is_cpu() ? empty_result(like_, shape) : at::empty(shape, like_.options());
  }
  const int64_t bytes = int64_t(like_.nbytes());
  char* out = static_cast<char*>(block_.mutable_data_ptr()) + bytes * filled_;
  filled_ += count;
  return out;
}

void Outputs::add(const at::Tensor& y) {
  const bool graph = at::GradMode::is_enabled() && y.requires_grad();
  if (graph || !nodes_.empty() || !y.is_cpu()) {
    nodes_.push_back(y);
  } else if (void* out = next(1); y.nbytes() > 0) {
    const char* from = static_cast<const char*>(y.const_data_ptr());
    at::parallel_for(0, int64_t(y.nbytes()), kStageGrain * int64_t(y.element_size()),
                     [&](int64_t begin, int64_t end) {
                       std::memcpy(static_cast<char*>(out) + begin, from + begin, end - begin);
                     });
  }
}

void Outputs::add(const Arithmetic& arithmetic, const at::Tensor& y, const StageDerivatives& k,
                  const std::vector<int>& stages, const std::vector<double>& c) {
  if (nodes_.empty() && arithmetic.raw(y, k, stages)) {
    const int64_t rows = int64_t(c.size() / stages.size());
    arithmetic.combine_rows_into(y, k, stages, c, next(rows));
  } else {
    for (const at::Tensor& row : arithmetic.combine_rows(y, k, stages, c).unbind()) {
      nodes_.push_back(row);
    }
  }
}

at::Tensor Outputs::finish() const {
  if (nodes_.empty()) return filled_ == count_ ? block_ : block_.narrow(0, 0, filled_);
  std::vector<at::Tensor> all;
  for (int64_t i = 0; i < filled_; ++i) all.push_back(block_.select(0, i));
  all.insert(all.end(), nodes_.begin(), nodes_.end());
  return at::stack(all);
}

}  // namespace fastnode
