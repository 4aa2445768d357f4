#include "driver/arithmetic.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/max.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/view_as_complex.h>
#include <ATen/ops/view_as_real.h>
#include <torch/csrc/utils/pybind.h>

#include <cmath>

#include "kernels/rk/rk_dense.h"
#include "kernels/rk/rk_stage.h"
#include "ops/common.h"
#include "ops/error_norm.h"
#include "step_control/controller.h"

namespace fastnode {

bool kernels_take(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 ||
         dtype == at::kHalf;
}

double resolution_of(at::ScalarType dtype) {
  double found = 0;
  dispatch_floating(c10::toRealValueType(dtype), "resolution",
                    [&]<class T>(T*) { found = Resolution<T>::value; });
  return found;
}

namespace {

template <class T>
Terms<T> terms_of(const StageDerivatives& k, const std::vector<int>& stages, const double* c) {
  Terms<T> terms;
  terms.count = int(stages.size());
  for (int j = 0; j < terms.count; ++j) {
    terms.k[j] = data<T>(k[stages[j]]);
    terms.c[j] = acc_t<T>(c[j]);
  }
  return terms;
}

at::Tensor call_rk_stage(const at::Tensor& y, at::TensorList k, at::ArrayRef<double> c) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("fastnode::rk_stage", "")
          .typed<at::Tensor(const at::Tensor&, at::TensorList, at::ArrayRef<double>)>();
  return op.call(y, k, c);
}

at::Tensor call_rk_dense(const at::Tensor& y, at::TensorList k, const at::Tensor& c) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("fastnode::rk_dense", "")
          .typed<at::Tensor(const at::Tensor&, at::TensorList, const at::Tensor&)>();
  return op.call(y, k, c);
}

at::Tensor call_rk_error(const at::Tensor& y0, const at::Tensor& y1, at::TensorList k,
                         at::ArrayRef<double> c, double rtol, double atol) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastnode::rk_error", "")
                             .typed<at::Tensor(const at::Tensor&, const at::Tensor&, at::TensorList,
                                               at::ArrayRef<double>, double, double, bool)>();
  return op.call(y0, y1, k, c, rtol, atol, false);
}

c10::SmallVector<at::Tensor, 16> chosen_of(const StageDerivatives& k,
                                           const std::vector<int>& stages) {
  c10::SmallVector<at::Tensor, 16> chosen;
  for (int stage : stages) chosen.push_back(k[stage]);
  return chosen;
}

// Calls an op of (y, stages). They take real numbers; weights are real, so a complex state is two
// real ones.
template <class Op>
at::Tensor by_op(const at::Tensor& y, const StageDerivatives& k, const std::vector<int>& stages,
                 Op op) {
  c10::SmallVector<at::Tensor, 16> chosen = chosen_of(k, stages);
  if (!y.is_complex()) return op(y, chosen);
  for (at::Tensor& each : chosen) each = at::view_as_real(each.resolve_conj());
  return at::view_as_complex(op(at::view_as_real(y.resolve_conj()), chosen));
}

constexpr size_t kMostWeights = kMaxTerms;

}  // namespace

double rms(const StageDerivatives& k, const Weights& weights) {
  double norm = 0;
  dispatch_floating(k[0].scalar_type(), "rms", [&]<class T>(T*) {
    const Terms<T> terms = terms_of<T>(k, weights.stages, weights.values.data());
    const T* any = data<T>(k[0]);
    const WithoutGil nogil(k[0].numel());
    norm = error_norm(any, any, terms, 0.0, 1.0, 0, k[0].numel());
  });
  return norm;
}

at::Tensor rms_on_gpu(const StageDerivatives& k, const Weights& weights) {
  const at::NoGradGuard no_grad;
  return call_rk_error(k[0], k[0], chosen_of(k, weights.stages), weights.values, 0.0, 1.0);
}

WithoutGil::WithoutGil(int64_t elements)
    : state_(elements >= kGrain ? PyEval_SaveThread() : nullptr) {}

WithoutGil::~WithoutGil() {
  if (state_ != nullptr) PyEval_RestoreThread(static_cast<PyThreadState*>(state_));
}

Arithmetic::Arithmetic(const at::Tensor& like)
    : on_memory_(like.is_cpu() && kernels_take(c10::toRealValueType(like.scalar_type()))),
      dtype_(c10::toRealValueType(like.scalar_type())),
      numel_(like.numel() * (like.is_complex() ? 2 : 1)) {}

bool Arithmetic::raw(const at::Tensor& y, const StageDerivatives& k,
                     const std::vector<int>& stages) const {
  if (!on_memory_) return false;
  if (!at::GradMode::is_enabled()) return true;
  if (y.requires_grad()) return false;
  for (int stage : stages) {
    if (k[stage].requires_grad()) return false;
  }
  return true;
}

void Arithmetic::combine(const at::Tensor& y, const StageDerivatives& k,
                         const std::vector<int>& stages, const double* c, Handle& out) const {
  if (raw(y, k, stages)) {
    combine_into(y, k, stages, c, out.writable(y).mutable_data_ptr());
  } else {
    const at::ArrayRef<double> weights(c, stages.size());
    out = Handle(by_op(y, k, stages, [&](const at::Tensor& state, at::TensorList chosen) {
      return call_rk_stage(state, chosen, weights);
    }));
  }
}

void Arithmetic::combine(const at::Tensor& y, const StageDerivatives& k, const Weights& weights,
                         double h, Handle& out) const {
  double c[kMostWeights];
  for (size_t j = 0; j < weights.values.size(); ++j) c[j] = h * weights.values[j];
  combine(y, k, weights.stages, c, out);
}

void Arithmetic::combine_into(const at::Tensor& y, const StageDerivatives& k,
                              const std::vector<int>& stages, const double* c, void* out) const {
  dispatch_floating(dtype_, "combine", [&]<class T>(T*) {
    const Terms<T> terms = terms_of<T>(k, stages, c);
    const T* from = data<T>(y);
    const WithoutGil nogil(numel_);
    at::parallel_for(0, numel_, kStageGrain, [&](int64_t begin, int64_t end) {
      rk_stage_range(from, terms, begin, end, static_cast<T*>(out));
    });
  });
}

void Arithmetic::combine_rows_into(const at::Tensor& y, const StageDerivatives& k,
                                   const std::vector<int>& stages, const std::vector<double>& c,
                                   void* out) const {
  dispatch_floating(dtype_, "combine", [&]<class T>(T*) {
    const std::vector<acc_t<T>> weights(c.begin(), c.end());
    const Terms<T> terms = terms_of<T>(k, stages, c.data());
    const int64_t rows = int64_t(c.size() / stages.size());
    const T* from = data<T>(y);
    const WithoutGil nogil(numel_ * rows);
    at::parallel_for(0, numel_, std::max<int64_t>(1, kGrain / rows),
                     [&](int64_t begin, int64_t end) {
                       rk_dense_range(from, terms, weights.data(), rows, numel_, begin, end,
                                      static_cast<T*>(out));
                     });
  });
}

at::Tensor Arithmetic::combine_rows(const at::Tensor& y, const StageDerivatives& k,
                                    const std::vector<int>& stages,
                                    const std::vector<double>& c) const {
  const int64_t columns = int64_t(stages.size());
  at::Tensor weights = at::empty({int64_t(c.size()) / columns, columns}, at::kDouble);
  std::copy(c.begin(), c.end(), weights.mutable_data_ptr<double>());
  return by_op(y, k, stages, [&](const at::Tensor& state, at::TensorList chosen) {
    return call_rk_dense(state, chosen, weights);
  });
}

ErrorNorm::ErrorNorm(py::object norm, const at::Tensor& like, const Layout& layout)
    : norm_(norm),
      beside_(py::getattr(norm, "beside", py::none())),
      on_memory_(like.is_cpu() && kernels_take(like.scalar_type()) &&
                 norm.attr("plain").cast<bool>()),
      on_gpu_(like.is_cuda() && kernels_take(like.scalar_type()) &&
              norm.attr("plain").cast<bool>()),
      dtype_(like.scalar_type()),
      sizes_(layout.sizes) {
  if (!layout.is_tuple) sizes_ = {like.numel()};
  if (on_memory_ || on_gpu_) {
    rtol_ = norm.attr("rtol").cast<std::vector<double>>();
    atol_ = norm.attr("atol").cast<std::vector<double>>();
  }
}

double ErrorNorm::on_memory(const at::Tensor& y0, const at::Tensor& y1, const StageDerivatives& k,
                            const std::vector<int>& stages, const double* c) const {
  double largest = 0;
  dispatch_floating(dtype_, "error norm", [&]<class T>(T*) {
    const Terms<T> terms = terms_of<T>(k, stages, c);
    const T *before = data<T>(y0), *after = data<T>(y1);
    const WithoutGil nogil(y0.numel());
    int64_t offset = 0;
    for (size_t part = 0; part < sizes_.size(); ++part) {
      const double norm =
          error_norm(before, after, terms, rtol_[part], atol_[part], offset, offset + sizes_[part]);
      // Not std::max, which would lose a NaN.
      if (!(norm <= largest)) largest = norm;
      if (std::isnan(largest)) break;
      offset += sizes_[part];
    }
  });
  return largest;
}

double ErrorNorm::on_gpu(const at::Tensor& y0, const at::Tensor& y1, const StageDerivatives& k,
                         const std::vector<int>& stages, const double* c) const {
  const at::NoGradGuard no_grad;
  const c10::SmallVector<at::Tensor, 16> chosen = chosen_of(k, stages);
  const at::ArrayRef<double> weights(c, stages.size());
  std::vector<at::Tensor> norms;
  int64_t offset = 0;
  for (size_t part = 0; part < sizes_.size(); ++part) {
    const auto of_part = [&](const at::Tensor& x) {
      return sizes_.size() == 1 ? x : x.narrow(-1, offset, sizes_[part]);
    };
    c10::SmallVector<at::Tensor, 16> derivatives;
    for (const at::Tensor& each : chosen) derivatives.push_back(of_part(each));
    norms.push_back(
        call_rk_error(of_part(y0), of_part(y1), derivatives, weights, rtol_[part], atol_[part]));
    offset += sizes_[part];
  }
  const at::Tensor largest = norms.size() == 1 ? norms[0] : at::max(at::stack(norms));
  // Other Python threads may run while the GPU is waited for.
  const py::gil_scoped_release release;
  return largest.item<double>();
}

double ErrorNorm::operator()(const at::Tensor& y0, const at::Tensor& y1, const StageDerivatives& k,
                             const std::vector<int>& stages, const double* c) const {
  if (!on_memory_ && !on_gpu_) {
    py::list derivatives;
    for (int stage : stages) derivatives.append(wrap(k[stage]));
    const std::vector<double> weights(c, c + stages.size());
    return norm_(wrap(y0), wrap(y1), derivatives, weights).cast<double>();
  }
  double largest = on_memory_ ? on_memory(y0, y1, k, stages, c) : on_gpu(y0, y1, k, stages, c);
  if (!beside_.is_none()) {
    const double other = beside_().cast<double>();
    if (!(other <= largest)) largest = other;
  }
  return largest;
}

}  // namespace fastnode
