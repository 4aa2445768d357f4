// rk_control: the decisions of an adaptive solve, by the same functions on the CPU and in one
// thread on a GPU: how far a step goes, whether it is accepted, which outputs lie in it, what comes
// next.
#pragma once

#include <cstdint>

#include "common/failure.h"
#include "common/terms.h"
#include "step_control/controller.h"

namespace fastnode {

// Where a solve stands.
struct Course {
  double t = 0;          // of the state
  double h = 0;          // size of the step that the controller wants
  double direction = 1;  // 1 or -1
  // The step to be tried goes from t to t1 by `step`, which is signed; `taken` is its size, less
  // than h where it is cut short.
  double t1 = 0, step = 0, taken = 0;
  // Errors of the last two accepted steps and of the last one tried; where the last accepted began.
  double before = 1, earlier = 1, ratio = 0, t_before = 0;
  double longest = 0;  // of the steps tried
  // `attempts` counts as max_num_steps does, the others all along.
  int64_t attempts = 0, accepted = 0, rejected = 0;
  bool stuck = false;  // the step was rejected and cannot be made smaller
  bool blown = false;  // an attempt since the last accepted step was not finite
  // Accepted steps that followed such an attempt and were too short to change the state, since the
  // last longer one.
  int16_t futile = 0;
};

// Near overflow, and at a border beyond which the field is not defined, longer steps are not finite
// and shorter ones round to y: without this rule the time creeps on in millions of steps while the
// state stands still. A step of at most kShort resolutions of the longest step tried changes no
// digit that counts, as the longest changes the state by a hundredth or more. Once kFutile such
// steps have been accepted after attempts that were not finite, with no longer one between them,
// the next attempt that is not finite is the last.
constexpr double kShort = 64;
constexpr int kFutile = 16;

// The trial step of Controller::trial_step, from the norms of the state and of its derivative, in a
// solve that ends at `end`. Where one of them is not finite, the course is stuck.
FASTNODE_HD void plan_trial(Course& course, double d0, double d1, double end) {
  course.taken = Controller::trial_step(d0, d1, std::abs(end - course.t));
  course.step = course.direction * course.taken;
  course.stuck = !(finite(d0) && finite(d1));
}

// The first step from it and the norm of the derivative's change over it; NaN if the course is
// stuck.
template <class Power>
FASTNODE_HD void plan_first(Course& course, const Controller& controller, double d1,
                            double difference, Power power) {
  const double h = controller.first_step(course.taken, d1, difference, power);
  course.h = course.stuck ? bit_cast<double>(0x7FF8000000000000ull) : controller.clip(h);
}

// Whether the time does not move any more.
FASTNODE_HD bool blocked(const Course& course) {
  return course.stuck || course.t + rounded_product(course.h, course.direction) == course.t;
}

// Why no step can be tried any more, if none can.
FASTNODE_HD Failure failure_of(const Course& course, int64_t max_num_steps) {
  if (blocked(course)) return finite(course.ratio) ? Failure::kUnderflow : Failure::kNotFinite;
  return course.attempts < max_num_steps ? Failure::kNone : Failure::kTooManySteps;
}

// An attempt of length zero, for a solve that has ended while others go on.
FASTNODE_HD void rest(Course& course) {
  course.t1 = course.t;
  course.step = 0;
}

// The next attempt, which ends at `limit` at the latest.
FASTNODE_HD void plan(Course& course, double limit) {
  ++course.attempts;
  const double room = std::abs(limit - course.t);
  course.taken = lesser(course.h, room);
  course.longest = greater(course.longest, course.taken);
  course.t1 = course.h < room ? course.t + rounded_product(course.h, course.direction) : limit;
  course.step = course.t1 - course.t;
}

// What follows from the error of the attempt, `ratio` tolerances. Whether it is accepted;
// `always`: whatever its error.
template <class Power>
FASTNODE_HD bool settle(Course& course, const Controller& controller, double ratio, Power power,
                        bool always = false) {
  const double following =
      controller.next_step(course.taken, ratio, course.before, course.earlier, power);
  course.ratio = ratio;
  if (!always && !controller.accepts(course.taken, ratio)) {
    ++course.rejected;
    course.blown = course.blown || !finite(ratio);
    course.stuck = following >= course.taken || (course.futile >= kFutile && !finite(ratio));
    course.h = following;
    return false;
  }
  ++course.accepted;
  if (course.taken > kShort * controller.resolution * course.longest) {
    course.futile = 0;
  } else if (course.blown && course.futile < kFutile) {
    ++course.futile;
  }
  course.stuck = course.blown = false;
  course.earlier = course.before;
  course.before = ratio;
  // A step that was cut short by the limit says little about the next one.
  course.h = course.taken < course.h ? greater(following, course.h) : following;
  course.t_before = course.t;
  course.t = course.t1;
  return true;
}

// What stays as it is during a solve. Its pointers are to memory of the caller.
struct Span {
  Controller controller;
  // Times of outputs, of which the solve starts at the first, and times at which a step must end,
  // of which the last is the last output's; both in the order of the solve.
  const double* outputs;
  const double* limits;
  int64_t output_count;
  // Attempts from one output to the next, or in all.
  int64_t max_num_steps;
  bool all_together;
  // Where ends and errors of accepted steps are noted, for so many steps; or null.
  double* ends;
  double* errors;
  int64_t capacity;
};

// A course that decides alone: what an adaptive loop needs to know beside it.
struct Control {
  Course course;
  int64_t limit = 0;  // index of the next of span.limits
  // Outputs before `next` are made; those from `made` on lie in the step just tried.
  int64_t next = 1, made = 1;
  int64_t noted = 0;     // entries of span.ends
  bool moved = false;    // whether the step just tried was accepted
  bool running = false;  // whether there is another step to try
  // Not running with outputs left: if noted == span.capacity, the host is to provide memory for
  // more (noted = 0) and begin again; otherwise the solve cannot go on.
};

// The first of sorted times from `begin` on that lies after t.
FASTNODE_HD int64_t first_after(const double* times, int64_t begin, int64_t end, double t,
                                double direction) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if ((times[middle] - t) * direction > 0) {
      end = middle;
    } else {
      begin = middle + 1;
    }
  }
  return begin;
}

// Plans the next attempt, if there is one to make. Where there is none, the step has length
// zero, and kernels that run all the same change nothing.
FASTNODE_HD void prepare(Control& control, const Span& span) {
  Course& course = control.course;
  const bool full = span.ends != nullptr && control.noted == span.capacity;
  control.running = control.next < span.output_count && !full &&
                    course.attempts < span.max_num_steps && !blocked(course);
  if (control.running) {
    plan(course, span.limits[control.limit]);
  } else {
    rest(course);
  }
}

// After an attempt whose error came out as `ratio` tolerances.
template <class Power = PortablePower>
FASTNODE_HD void conclude(Control& control, const Span& span, double ratio, Power power = {}) {
  Course& course = control.course;
  control.made = control.next;
  control.moved = false;
  if (!control.running) return;
  control.moved = settle(course, span.controller, ratio, power);
  if (control.moved) {
    if (span.ends != nullptr) {
      span.ends[control.noted] = course.t;
      span.errors[control.noted++] = ratio;
    }
    control.next =
        first_after(span.outputs, control.next, span.output_count, course.t, course.direction);
    if (control.next > control.made && !span.all_together) course.attempts = 0;
    if ((course.t - span.limits[control.limit]) * course.direction >= 0) ++control.limit;
  }
  prepare(control, span);
}

// The larger of an error so far and that of a further part of the state; NaN stays.
FASTNODE_HD double worse(double so_far, double error) {
  return so_far != so_far || error <= so_far ? so_far : error;
}

// Times of the stages after the first as the field takes them, in the state's type: t + c h, and
// for c = 1 the number just before t1 in the direction of time (fastnode.problem.ivp.VectorField).
template <class T>
struct StageTimes {
  double fractions[kMaxTerms];  // c of each stage, the first one's included
  int count;                    // of stages
  T* out;                       // [count] on the device; the first entry is left as it is
};

// The dense output of a method: y(t + x h) = y + h sum_j p_j(x) k_j, p_j(x) = sum_i a_ji x^(i + 1).
constexpr int kMaxDegree = 8;
template <class T>
struct DenseTerms {
  const T* k[kMaxTerms];
  double a[kMaxTerms][kMaxDegree];
  int degree, count;
};

// The solve's memory, [numel] each and none shared: the state and its derivative, overwritten by y1
// and f1 when a step is accepted; outputs [output_count, numel]; and, unless null, the states at
// which accepted steps began, [span.capacity, numel].
template <class T>
struct Places {
  T* y;
  T* f;
  const T* y1;
  const T* f1;
  T* outputs;
  T* starts;
  int64_t numel;
};

// On a CUDA stream; each gives a cudaError_t. `control` and all that is pointed to lie on the
// device, the structures themselves travel with the launch.
//
//     rk_trial          course.t and direction are set: from the norms d0 of y and d1 of its
//     derivative
//                       the trial step of Controller::trial_step, in a solve that ends at the time
//                       `end`, into course.step, its end into `time`
//     rk_first          from d1 and the norm of the derivative's change the first course.h
//     rk_begin          course.t, h and direction are set: plans the first attempt
//     rk_step_stage     out = y + h sum_j w_j k_j, bit for bit what rk_stage gives for h w_j
//     rk_step_error     norm as rk_error's joint one with weights h w_j; `partial` as there
//     rk_control        the worst of `parts` norms decides; sets times of the next attempt's stages
//     rk_note           after rk_control: stiffness of the step, if it was accepted, at the index
//                       where its end is noted, from the norms of stiffness_of
//     rk_commit         outputs inside the step just accepted, then y = y1 and f = f1
//
// Norms are those of `parts` parts of the state, of which the worst counts. rk_trial and rk_first
// are for solves without a first step given; a state that is not finite leaves course.h NaN and the
// solve not running. A step is: stages, error, rk_control, rk_commit.
#define FASTNODE_DECLARE_RK_CONTROL(T)                                                       \
  int rk_trial_cuda(Control* control, const acc_t<T>* d0, const acc_t<T>* d1, int parts,     \
                    const double* end, T* time, void* cuda_stream);                          \
  int rk_begin_cuda(Control* control, const Span& span, const StageTimes<T>& times,          \
                    void* cuda_stream);                                                      \
  int rk_step_stage_cuda(const T* y, const StepTerms<T>& terms, int64_t numel, T* out,       \
                         void* cuda_stream);                                                 \
  int rk_step_error_cuda(const T* y0, const T* y1, const StepTerms<T>& terms, acc_t<T> rtol, \
                         acc_t<T> atol, int64_t numel, acc_t<T>* norm, double* partial,      \
                         void* cuda_stream);                                                 \
  int rk_control_cuda(Control* control, const Span& span, const acc_t<T>* norms, int parts,  \
                      const StageTimes<T>& times, void* cuda_stream);                        \
  int rk_commit_cuda(const Control* control, const Span& span, const DenseTerms<T>& dense,   \
                     const Places<T>& places, void* cuda_stream);
FASTNODE_DECLARE_RK_CONTROL(float)
FASTNODE_DECLARE_RK_CONTROL(double)
FASTNODE_DECLARE_RK_CONTROL(BFloat16)
FASTNODE_DECLARE_RK_CONTROL(Half)
#undef FASTNODE_DECLARE_RK_CONTROL

#define FASTNODE_DECLARE_RK_FIRST(A)                                                            \
  int rk_first_cuda(Control* control, const Controller& controller, const A* d1,                \
                    const A* difference, int parts, void* cuda_stream);                         \
  int rk_note_cuda(const Control* control, const A* norms, double stability, double* stiffness, \
                   void* cuda_stream);
FASTNODE_DECLARE_RK_FIRST(float)
FASTNODE_DECLARE_RK_FIRST(double)
#undef FASTNODE_DECLARE_RK_FIRST

}  // namespace fastnode
