#include "driver/cuda_graph_step.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/DeviceGuard.h>

#include <cstring>
#include <numeric>

#include "driver/cuda_graph_kernels.h"
#include "driver/solve_loop.h"

namespace fastnode {
namespace {

// Bytes before the times of outputs, which doubles follow.
constexpr int64_t kControlBytes = (sizeof(Control) + 7) / 8 * 8;

at::Tensor of_doubles(const at::Tensor& like, int64_t count) {
  return at::empty({count}, like.options().dtype(at::kDouble));
}

at::Tensor rows_like(const at::Tensor& like, int64_t rows) {
  std::vector<int64_t> shape = {rows};
  shape.insert(shape.end(), like.sizes().begin(), like.sizes().end());
  return at::empty(shape, like.options());
}

}  // namespace

GraphStep::GraphStep(at::Tensor state, std::shared_ptr<const Tableau> tableau,
                     Controller controller, Parts parts, Limits limits,
                     std::optional<StiffnessPair> stiffness_pair)
    : y(std::move(state)),
      tableau_(std::move(tableau)),
      controller_(controller),
      parts_(std::move(parts)),
      limits_(limits),
      stiffness_pair_(std::move(stiffness_pair)) {
  controller_.resolution = resolution_of(y.scalar_type());
  const c10::DeviceGuard guard(y.device());
  const size_t further = inside() ? tableau_->further.size() : 0;
  memory = at::empty({kControlBytes + 8 * limits_.output_count}, y.options().dtype(at::kByte));
  f = at::empty_like(y);
  zero_ = at::zeros_like(y);
  times = at::empty({int64_t(tableau_->stages.size() + further)}, y.options());
  outputs = rows_like(y, limits_.output_count);
  ends = of_doubles(y, limits_.capacity);
  errors = of_doubles(y, limits_.capacity);
  stiffness = of_doubles(y, stiffness_pair_ ? limits_.capacity : 0);
  starts = rows_like(y, limits_.keeps_starts ? limits_.capacity : 0);
  norms_ = at::empty({3 * this->parts() + 2}, y.options().dtype(accumulate_type(y.scalar_type())));
  with_kernels(y, [&]<class K>(const K&) { partial_ = of_doubles(y, K::partials(y.numel())); });
}

at::Tensor GraphStep::image(double h, double direction, const std::vector<double>& at) const {
  Control control{};
  control.course.t = control.course.t_before = control.course.t1 = at[0];
  control.course.h = h == 0 ? 0 : controller_.clip(h);
  control.course.direction = direction;
  at::Tensor bytes = at::empty(memory.sizes(), at::kByte);
  char* out = static_cast<char*>(bytes.mutable_data_ptr());
  std::memset(out, 0, size_t(memory.numel()));
  std::memcpy(out, &control, sizeof(control));
  std::memcpy(out + kControlBytes, at.data(), 8 * at.size());
  return bytes;
}

Span GraphStep::span() const {
  const double* at = reinterpret_cast<const double*>(
      static_cast<const char*>(memory.const_data_ptr()) + kControlBytes);
  return {controller_,
          at,
          at + limits_.output_count - 1,
          limits_.output_count,
          limits_.max_num_steps,
          limits_.all_together,
          ends.mutable_data_ptr<double>(),
          errors.mutable_data_ptr<double>(),
          limits_.capacity};
}

at::Tensor GraphStep::combine(const at::Tensor& from, const StageDerivatives& k,
                              const Weights& weights) const {
  at::Tensor out = at::empty_like(y);
  with_kernels(y, [&]<class K>(const K& kernels) {
    using T = typename K::Scalar;
    kernels.stage(data<T>(from), step_terms<T>(k, weights, control()), y.numel(),
                  mutable_data<T>(out));
  });
  return out;
}

void GraphStep::measure(const at::Tensor& y1, const StageDerivatives& k, const Weights& weights,
                        bool of_step, const at::Tensor& out) const {
  with_kernels(y, [&]<class K>(const K& kernels) {
    using T = typename K::Scalar;
    StepTerms<T> terms = step_terms<T>(k, weights, control());
    int64_t offset = 0;
    for (size_t part = 0; part < parts_.sizes.size(); ++part) {
      const int64_t size = parts_.sizes[part];
      kernels.error(data<T>(y) + offset, data<T>(y1) + offset, terms, of_step, parts_.rtol[part],
                    parts_.atol[part], size, mutable_data<acc_t<T>>(out) + part,
                    mutable_data<double>(partial_));
      for (int j = 0; j < terms.count; ++j) terms.k[j] += size;
      offset += size;
    }
  });
}

at::Tensor GraphStep::try_first() {
  const int64_t count = parts();
  measure(y, {y}, {{0}, {1.0}}, false, norms_);
  measure(y, {f}, {{0}, {1.0}}, false, norms_.narrow(0, count, count));
  with_kernels(y, [&]<class K>(const K& kernels) {
    using T = typename K::Scalar;
    kernels.trial(control(), data<acc_t<T>>(norms_), int(count), span().limits,
                  mutable_data<T>(times) + 1);
  });
  return combine(y, {f}, {{0}, {1.0}});
}

void GraphStep::choose_first(const at::Tensor& f1) {
  const int64_t count = parts();
  measure(y, {f1, f}, {{0, 1}, {1.0, -1.0}}, false, norms_.narrow(0, 2 * count, count));
  with_kernels(y, [&]<class K>(const K& kernels) {
    using T = typename K::Scalar;
    kernels.first(control(), controller_, data<acc_t<T>>(norms_), int(count));
  });
}

void GraphStep::begin() {
  with_kernels(y, [&]<class K>(const K& kernels) {
    using T = typename K::Scalar;
    kernels.begin(control(), span(), stage_times<T>(*tableau_, times));
  });
}

at::Tensor GraphStep::stage(const StageDerivatives& k, size_t i) const {
  const size_t own = tableau_->stages.size();
  return combine(y, k, i < own ? tableau_->stages[i] : tableau_->further[i - own]);
}

at::Tensor GraphStep::solution(const StageDerivatives& k) const {
  return combine(y, k, tableau_->solution);
}

void GraphStep::place(const at::Tensor& numbers) {
  with_kernels(y, [&]<class K>(const K& kernels) {
    using T = typename K::Scalar;
    kernels.place(control(), data<double>(numbers), stage_times<T>(*tableau_, times));
  });
}

at::Tensor GraphStep::increment(const StageDerivatives& x,
                                const std::vector<double>& weights) const {
  std::vector<int> all(x.size());
  std::iota(all.begin(), all.end(), 0);
  return combine(zero_, x, {all, weights});
}

void GraphStep::conclude(const StageDerivatives& k, const at::Tensor& y1) {
  const int64_t count = parts();
  measure(y1, k, tableau_->error, true, norms_);
  with_kernels(y, [&]<class K>(const K& kernels) {
    using T = typename K::Scalar;
    using A = acc_t<T>;
    kernels.control(control(), span(), data<A>(norms_), int(count),
                    stage_times<T>(*tableau_, times));
    if (!stiffness_pair_) return;
    A* const both = mutable_data<A>(norms_) + 3 * count;
    for (const Weights* weights : {&stiffness_pair_->derivatives, &stiffness_pair_->states}) {
      kernels.error(data<T>(k[0]), data<T>(k[0]), step_terms<T>(k, *weights, control()), false, 0.0,
                    1.0, y.numel(), both + (weights == &stiffness_pair_->states),
                    mutable_data<double>(partial_));
    }
    kernels.note(control(), both, stiffness_pair_->stability, mutable_data<double>(stiffness));
  });
}

void GraphStep::commit(const StageDerivatives& k, const at::Tensor& y1) {
  with_kernels(y, [&]<class K>(const K& kernels) {
    using T = typename K::Scalar;
    const at::Tensor& f1 = k[tableau_->stages.size() - 1];
    const Places<T> places{mutable_data<T>(y),
                           mutable_data<T>(f),
                           data<T>(y1),
                           data<T>(f1),
                           mutable_data<T>(outputs),
                           limits_.keeps_starts ? mutable_data<T>(starts) : nullptr,
                           y.numel()};
    kernels.commit(control(), span(), dense_terms<T>(*tableau_, k, inside()), places);
  });
}

}  // namespace fastnode
