// The kernels of GraphStep, on a CUDA stream or, by the same functions, in this machine's memory.
#pragma once

#include <c10/core/DeviceGuard.h>

#include <algorithm>

#include "driver/arithmetic.h"
#include "kernels/rk/rk_error.h"
#include "kernels/rk/rk_stage.h"
#include "ops/common.h"
#include "ops/cuda_stream.h"
#include "ops/error_norm.h"
#include "step_control/rk_control.h"
#include "step_control/rk_times.h"

namespace fastnode {

template <class T>
StepTerms<T> step_terms(const StageDerivatives& k, const Weights& weights, const Control* control) {
  StepTerms<T> terms;
  terms.count = int(weights.stages.size());
  terms.h = &control->course.step;
  for (int j = 0; j < terms.count; ++j) {
    terms.k[j] = data<T>(k[weights.stages[j]]);
    terms.w[j] = weights.values[j];
  }
  return terms;
}

// The same with the size of the step as a number.
template <class T>
Terms<T> plain_terms(const StepTerms<T>& terms, double h) {
  Terms<T> plain;
  plain.count = terms.count;
  for (int j = 0; j < terms.count; ++j) {
    plain.k[j] = terms.k[j];
    plain.c[j] = acc_t<T>(h * terms.w[j]);
  }
  return plain;
}

// Those of dense output's further stages behind the method's own.
template <class T>
StageTimes<T> stage_times(const Tableau& tableau, const at::Tensor& out) {
  StageTimes<T> times;
  times.count = int(out.numel());
  times.out = mutable_data<T>(out);
  const size_t own = tableau.times.size();
  for (size_t i = 0; i < size_t(times.count); ++i) {
    times.fractions[i] = i < own ? tableau.times[i] : tableau.further_times[i - own];
  }
  return times;
}

template <class T>
DenseTerms<T> dense_terms(const Tableau& tableau, const StageDerivatives& k, bool wanted) {
  DenseTerms<T> terms{};
  for (const Polynomial& row : tableau.dense) {
    if (!wanted) break;
    TORCH_CHECK(row.coefficients.size() <= size_t(kMaxDegree), "dense output of too high a degree");
    terms.degree = int(row.coefficients.size());
    std::copy(row.coefficients.begin(), row.coefficients.end(), terms.a[terms.count]);
    terms.k[terms.count++] = data<T>(k[row.stage]);
  }
  return terms;
}

template <class T>
class CpuKernels {
 public:
  using Scalar = T;
  using A = acc_t<T>;

  static int64_t partials(int64_t) { return 0; }

  void stage(const T* y, const StepTerms<T>& terms, int64_t numel, T* out) const {
    combine(y, plain_terms(terms, *terms.h), numel, out);
  }

  void error(const T* y0, const T* y1, const StepTerms<T>& terms, bool of_step, double rtol,
             double atol, int64_t numel, A* norm, double*) const {
    const Terms<T> plain = plain_terms(terms, of_step ? *terms.h : 1.0);
    *norm = A(error_norm(y0, y1, plain, rtol, atol, 0, numel));
  }

  // As rk_trial and rk_first; `norms` are those of the state, of its derivative and of the
  // derivative's change, part by part.
  void trial(Control* control, const A* norms, int parts, const double* end, T* time) const {
    Course& course = control->course;
    plan_trial(course, worst(norms, parts), worst(norms + parts, parts), *end);
    *time = as_time<T>(course.t + course.step);
  }

  void first(Control* control, const Controller& controller, const A* norms, int parts) const {
    plan_first(control->course, controller, worst(norms + parts, parts),
               worst(norms + 2 * parts, parts), LibraryPower());
  }

  void begin(Control* control, const Span& span, const StageTimes<T>& times) const {
    control->made = control->next;
    control->moved = false;
    prepare(*control, span);
    set(times, control->course);
  }

  void control(Control* control, const Span& span, const A* norms, int parts,
               const StageTimes<T>& times) const {
    conclude(*control, span, worst(norms, parts), LibraryPower());
    set(times, control->course);
  }

  void place(Control* control, const double* numbers, const StageTimes<T>& times) const {
    fastnode::place(control->course, numbers);
    times.out[0] = first_time<T>(control->course, numbers);
    set(times, control->course);
  }

  void note(const Control* control, const A* norms, double stability, double* stiffness) const {
    note_stiffness(*control, norms, stability, stiffness);
  }

  void commit(const Control* control, const Span& span, const DenseTerms<T>& dense,
              const Places<T>& to) const {
    if (!control->moved) return;
    const Course& course = control->course;
    for (int64_t i = control->made; i < control->next; ++i) {
      T* const out = to.outputs + i * to.numel;
      if (span.outputs[i] == course.t) {
        std::copy_n(to.y1, to.numel, out);
      } else {
        Terms<T> terms;
        terms.count = dense.count;
        for (int j = 0; j < dense.count; ++j) {
          terms.k[j] = dense.k[j];
          terms.c[j] = A(dense_weight(dense, j, course.t_before, course.t, span.outputs[i]));
        }
        combine(to.y, terms, to.numel, out);
      }
    }
    if (to.starts != nullptr) {
      std::copy_n(to.y, to.numel, to.starts + (control->noted - 1) * to.numel);
    }
    std::copy_n(to.y1, to.numel, to.y);
    std::copy_n(to.f1, to.numel, to.f);
  }

 private:
  static void set(const StageTimes<T>& times, const Course& course) {
    for (int i = 1; i < times.count; ++i) {
      times.out[i] = stage_time<T>(course, times.fractions[i]);
    }
  }

  static void combine(const T* y, const Terms<T>& terms, int64_t numel, T* out) {
    at::parallel_for(0, numel, kStageGrain, [&](int64_t begin, int64_t end) {
      rk_stage_range(y, terms, begin, end, out);
    });
  }
};

#ifdef FASTNODE_WITH_CUDA
template <class T>
class CudaKernels {
 public:
  using Scalar = T;
  using A = acc_t<T>;

  explicit CudaKernels(c10::Device device) : stream_(current_cuda_stream(device, "graph engine")) {}

  static int64_t partials(int64_t numel) { return rk_error_cuda_partials(1, numel); }

  void stage(const T* y, const StepTerms<T>& terms, int64_t numel, T* out) const {
    check(rk_step_stage_cuda(y, terms, numel, out, stream_));
  }

  void error(const T* y0, const T* y1, const StepTerms<T>& terms, bool of_step, double rtol,
             double atol, int64_t numel, A* norm, double* partial) const {
    check(of_step
              ? rk_step_error_cuda(y0, y1, terms, A(rtol), A(atol), numel, norm, partial, stream_)
              : rk_error_cuda(y0, y1, plain_terms(terms, 1.0), A(rtol), A(atol), 1, numel, norm,
                              partial, stream_));
  }

  void trial(Control* control, const A* norms, int parts, const double* end, T* time) const {
    check(rk_trial_cuda(control, norms, norms + parts, parts, end, time, stream_));
  }

  void first(Control* control, const Controller& controller, const A* norms, int parts) const {
    check(rk_first_cuda(control, controller, norms + parts, norms + 2 * parts, parts, stream_));
  }

  void begin(Control* control, const Span& span, const StageTimes<T>& times) const {
    check(rk_begin_cuda(control, span, times, stream_));
  }

  void control(Control* control, const Span& span, const A* norms, int parts,
               const StageTimes<T>& times) const {
    check(rk_control_cuda(control, span, norms, parts, times, stream_));
  }

  void place(Control* control, const double* numbers, const StageTimes<T>& times) const {
    check(rk_place_cuda(control, numbers, times, stream_));
  }

  void note(const Control* control, const A* norms, double stability, double* stiffness) const {
    check(rk_note_cuda(control, norms, stability, stiffness, stream_));
  }

  void commit(const Control* control, const Span& span, const DenseTerms<T>& dense,
              const Places<T>& to) const {
    check(rk_commit_cuda(control, span, dense, to, stream_));
  }

 private:
  static void check(int error) { TORCH_CHECK(error == 0, "graph engine: CUDA error ", error); }

  void* stream_;
};
#endif

// Calls f with the kernels for a state's device and dtype.
template <class F>
void with_kernels(const at::Tensor& y, F&& f) {
  dispatch_floating(y.scalar_type(), "graph engine", [&]<class T>(T*) {
#ifdef FASTNODE_WITH_CUDA
    if (y.is_cuda()) {
      const c10::DeviceGuard guard(y.device());
      return f(CudaKernels<T>(y.device()));
    }
#endif
    TORCH_CHECK(y.is_cpu(), "graph engine: this build has no kernels for ", y.device());
    f(CpuKernels<T>());
  });
}

}  // namespace fastnode
