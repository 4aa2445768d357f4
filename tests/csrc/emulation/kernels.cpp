// The CUDA kernels by C functions that take a number for the dtype, and a solve made of them.
#include <cuda_runtime.h>

#include <algorithm>
#include <vector>

#include "kernels/rk/rk_adjoint.h"
#include "kernels/rk/rk_dense.h"
#include "kernels/rk/rk_error.h"
#include "kernels/rk/rk_rows.h"
#include "kernels/rk/rk_stage.h"
#include "step_control/rk_control.h"

using namespace fastnode;

namespace {

template <class F>
int with_type(int dtype, F&& f) {
  switch (dtype) {
    case 0:
      return f(static_cast<float*>(nullptr));
    case 1:
      return f(static_cast<double*>(nullptr));
    case 2:
      return f(static_cast<BFloat16*>(nullptr));
    default:
      return f(static_cast<Half*>(nullptr));
  }
}

template <class T>
const T* as(const void* pointer) {
  return static_cast<const T*>(pointer);
}

template <class T>
Terms<T> terms(void** k, const double* c, int count) {
  Terms<T> all{};
  all.count = count;
  for (int j = 0; j < count; ++j) {
    all.k[j] = as<T>(k[j]);
    if (c != nullptr) all.c[j] = acc_t<T>(c[j]);
  }
  return all;
}

template <class T>
StepTerms<T> step_terms(const std::vector<std::vector<T>>& k, const double* w, int count,
                        const double* h) {
  StepTerms<T> all{};
  all.h = h;
  for (int j = 0; j < count; ++j) {
    if (w[j] == 0) continue;
    all.k[all.count] = k[j].data();
    all.w[all.count++] = w[j];
  }
  return all;
}

}  // namespace

extern "C" {

int64_t partials(int64_t rows, int64_t dim) { return rk_error_cuda_partials(rows, dim); }

int stage(int dtype, const void* y, void** k, const double* c, int count, int64_t numel,
          void* out) {
  return with_type(dtype, [&]<class T>(T*) {
    return rk_stage_cuda(as<T>(y), terms<T>(k, c, count), numel, static_cast<T*>(out), nullptr);
  });
}

int step_stage(int dtype, const void* y, void** k, const double* w, int count, const double* h,
               int64_t numel, void* out) {
  return with_type(dtype, [&]<class T>(T*) {
    StepTerms<T> all{};
    all.h = h;
    all.count = count;
    for (int j = 0; j < count; ++j) all.k[j] = as<T>(k[j]), all.w[j] = w[j];
    return rk_step_stage_cuda(as<T>(y), all, numel, static_cast<T*>(out), nullptr);
  });
}

int adjoint(int dtype, const void* base, void** x, const double* c, int count, int64_t numel,
            void* out) {
  return with_type(dtype, [&]<class T>(T*) {
    return rk_adjoint_cuda(as<T>(base), terms<T>(x, c, count), numel, static_cast<T*>(out),
                           nullptr);
  });
}

int dense(int dtype, const void* y, void** k, const double* c, int count, int64_t m, int64_t numel,
          void* out) {
  return with_type(dtype, [&]<class T>(T*) {
    const std::vector<acc_t<T>> weights(c, c + m * count);
    return rk_dense_cuda(as<T>(y), terms<T>(k, nullptr, count), weights.data(), m, numel,
                         static_cast<T*>(out), nullptr);
  });
}

int error(int dtype, const void* y0, const void* y1, void** k, const double* c, int count,
          double rtol, double atol, int64_t rows, int64_t dim, void* norm) {
  std::vector<double> partial(rk_error_cuda_partials(rows, dim));
  return with_type(dtype, [&]<class T>(T*) {
    using A = acc_t<T>;
    return rk_error_cuda(as<T>(y0), as<T>(y1), terms<T>(k, c, count), A(rtol), A(atol), rows, dim,
                         static_cast<A*>(norm), partial.data(), nullptr);
  });
}

int stage_rows(int dtype, const void* y, void** k, const double* c, int count, const double* h,
               int64_t rows, int64_t dim, void* out) {
  return with_type(dtype, [&]<class T>(T*) {
    return rk_stage_rows_cuda(as<T>(y), terms<T>(k, c, count), h, rows, dim, static_cast<T*>(out),
                              nullptr);
  });
}

int error_rows(int dtype, const void* y0, const void* y1, void** k, const double* c, int count,
               const double* h, const double* rtol, const double* atol, int64_t rows, int64_t dim,
               void* norm) {
  std::vector<double> partial(rk_error_cuda_partials(rows, dim));
  return with_type(dtype, [&]<class T>(T*) {
    return rk_error_rows_cuda(as<T>(y0), as<T>(y1), terms<T>(k, c, count), h, rtol, atol, rows, dim,
                              static_cast<acc_t<T>*>(norm), partial.data(), nullptr);
  });
}

int dense_rows(int dtype, const void* y, void** k, const double* w, int count, int64_t rows,
               int64_t dim, void* out) {
  return with_type(dtype, [&]<class T>(T*) {
    return rk_dense_rows_cuda(as<T>(y), terms<T>(k, nullptr, count), w, rows, dim,
                              static_cast<T*>(out), nullptr);
  });
}

// What a method and a solve are made of; a is [stages, stages], dense [stages, kMaxDegree].
struct Method {
  int stages, fsal, degree, order;
  const double *a, *b, *c, *e, *dense;
};
struct Task {
  double t, direction, rtol, atol, first_step;
  double control[9];
  const double *outputs, *limits;
  int64_t output_count, numel, max_num_steps, all_together, capacity;
};
struct Found {
  void* outputs;
  void* starts;
  double *ends, *errors;
  int64_t accepted, rejected, attempts, noted, next, running, iterations;
  double t, h;
};

// dy_i/dt = (t - 1) y_i / (1 + i), by the kernels that a captured graph repeats. y is overwritten.
int solve(int dtype, const Method* method, const Task* task, void* state, Found* found) {
  return with_type(dtype, [&]<class T>(T*) {
    using A = acc_t<T>;
    const int64_t numel = task->numel;
    const int stages = method->stages;
    T* y = static_cast<T*>(state);
    std::vector<std::vector<T>> k(stages, std::vector<T>(numel));
    std::vector<T> stage(numel), difference(numel), times(stages);
    std::vector<double> partial(rk_error_cuda_partials(1, numel));
    const auto field = [&](T time, const T* at, T* derivative) {
      for (int64_t i = 0; i < numel; ++i) {
        derivative[i] = store<T>((load(time) - A(1)) * load(at[i]) / A(1 + i));
      }
    };
    const auto& n = task->control;
    Span span{};
    span.controller = {n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], method->order};
    span.controller.resolution = Resolution<T>::value;
    span.outputs = task->outputs;
    span.limits = task->limits;
    span.output_count = task->output_count;
    span.max_num_steps = task->max_num_steps;
    span.all_together = task->all_together;
    span.ends = found->ends;
    span.errors = found->errors;
    span.capacity = task->capacity;
    Control control;
    control.course.t = task->t;
    control.course.direction = task->direction;
    StageTimes<T> stage_times{};
    stage_times.count = stages;
    stage_times.out = times.data();
    std::copy_n(method->c, stages, stage_times.fractions);

    const A rtol = A(task->rtol), atol = A(task->atol);
    field(store<T>(A(task->t)), y, k[0].data());
    if (task->first_step > 0) {
      control.course.h = span.controller.clip(task->first_step);
    } else {
      A d0, d1, d2;
      Terms<T> one{};
      one.count = 1;
      one.c[0] = 1;
      one.k[0] = y;
      rk_error_cuda(y, y, one, rtol, atol, 1, numel, &d0, partial.data(), nullptr);
      one.k[0] = k[0].data();
      rk_error_cuda(y, y, one, rtol, atol, 1, numel, &d1, partial.data(), nullptr);
      T time;
      const double end = task->outputs[task->output_count - 1];
      rk_trial_cuda(&control, &d0, &d1, 1, &end, &time, nullptr);
      const double whole = 1;
      rk_step_stage_cuda(y, step_terms(k, &whole, 1, &control.course.step), numel, stage.data(),
                         nullptr);
      field(time, stage.data(), k[1].data());
      Terms<T> both{};
      both.count = 2;
      both.k[0] = k[1].data();
      both.k[1] = k[0].data();
      both.c[0] = 1;
      both.c[1] = -1;
      rk_error_cuda(y, y, both, rtol, atol, 1, numel, &d2, partial.data(), nullptr);
      rk_first_cuda(&control, span.controller, &d1, &d2, 1, nullptr);
    }
    rk_begin_cuda(&control, span, stage_times, nullptr);

    DenseTerms<T> dense{};
    dense.degree = method->degree;
    dense.count = stages;
    for (int j = 0; j < stages; ++j) {
      dense.k[j] = k[j].data();
      std::copy_n(method->dense + j * kMaxDegree, kMaxDegree, dense.a[j]);
    }
    const Places<T> places{y,
                           k[0].data(),
                           stage.data(),
                           k[stages - 1].data(),
                           static_cast<T*>(found->outputs),
                           static_cast<T*>(found->starts),
                           numel};
    const double* h = &control.course.step;
    found->iterations = 0;
    // Two more steps than there are: they must change nothing.
    for (int more = 2; control.running || more-- > 0;) {
      ++found->iterations;
      for (int i = 1; i < stages; ++i) {
        rk_step_stage_cuda(y, step_terms(k, method->a + i * stages, i, h), numel, stage.data(),
                           nullptr);
        field(times[i], stage.data(), k[i].data());
      }
      if (!method->fsal) {
        rk_step_stage_cuda(y, step_terms(k, method->b, stages, h), numel, stage.data(), nullptr);
      }
      A norm;
      rk_step_error_cuda(y, stage.data(), step_terms(k, method->e, stages, h), rtol, atol, numel,
                         &norm, partial.data(), nullptr);
      rk_control_cuda(&control, span, &norm, 1, stage_times, nullptr);
      rk_commit_cuda(&control, span, dense, places, nullptr);
    }
    const Course& course = control.course;
    found->accepted = course.accepted;
    found->rejected = course.rejected;
    found->attempts = course.attempts;
    found->noted = control.noted;
    found->next = control.next;
    found->running = control.running;
    found->t = course.t;
    found->h = course.h;
    return 0;
  });
}

double power(double x, double y) { return portable_power(x, y); }

// The sizes of steps that follow from errors, one after the other, as the C++ loop on the CPU (with
// the library's powers) or on a GPU decides about them. Gives the number of accepted ones.
int64_t decide(const double* n, int order, double h, const double* errors, int64_t count,
               int portable, double* sizes) {
  const Controller controller{n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], order};
  Course course;
  course.h = h;
  for (int64_t i = 0; i < count; ++i) {
    plan(course, 1e300);
    if (portable) {
      settle(course, controller, errors[i], PortablePower());
    } else {
      settle(course, controller, errors[i], LibraryPower());
    }
    sizes[i] = course.h;
  }
  return course.accepted;
}

int launches() { return emulation::launches; }
}
