// Adaptive steps with one size for all samples. All blocks hold the same course and decide alike
// from the same sums, so that one barrier a step is enough.
#include "common/grid_barrier.h"
#include "mlp/cuda/launch.h"
#include "mlp/cuda/steps.h"

namespace fastnode {
namespace {

template <class T, bool Far>
struct Joint {
  const MlpTask<T>& task;
  const MlpSteps<T, false, Far> steps;
  const int64_t sample;
  const bool real, leads;  // a sample of the batch; the first thread of the block
  unsigned long long barriers = 0;
  int turn = 0;

  __device__ explicit Joint(const MlpTask<T>& all)
      : task(all),
        steps(all, true),
        sample(int64_t(blockIdx.x) * steps.samples + steps.s),
        real(sample < all.batch),
        leads(threadIdx.x == 0) {}

  __device__ MlpState& state() const { return steps.memory.held[0].state; }
  __device__ Span span() const {
    const int64_t last = task.output_count - 1;
    return {task.controller,
            task.times,
            task.times + last,
            task.output_count,
            task.max_num_steps,
            task.all_together,
            nullptr,
            nullptr,
            0};
  }

  // Over all samples, the same bits for all threads of the grid: sums of blocks are added in their
  // order. What is read here is written again only after one more barrier.
  template <int N>
  __device__ void total(double (&values)[N]) {
    const int warps = steps.samples * steps.groups / 32, blocks = int(gridDim.x);
    if (!real) {
      for (double& value : values) value = 0;
    }
    block_sum(values, block_memory(), warps);
    if (blocks == 1) return;
    double* const partial = task.partial + (barriers % 2) * 3 * blocks;
    if (leads) {
#pragma unroll
      for (int n = 0; n < N; ++n) partial[n * blocks + blockIdx.x] = values[n];
    }
    grid_barrier(task.arrivals, barriers++);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      values[n] = 0;
      for (int i = threadIdx.x; i < blocks; i += steps.samples * steps.groups) {
        values[n] += __ldcg(partial + n * blocks + i);
      }
    }
    block_sum(values, block_memory(), warps);
  }

  __device__ double* block_memory() {
    return steps.memory.sums + (turn++ % 2) * 3 * (kMlpJointThreads / 32);
  }

  __device__ double norm(double sum) const {
    return sqrt(sum / double(task.batch * task.field.dim));
  }

  __device__ void begin() {
    Course course;
    course.t = task.times[0];
    const double end = task.times[task.output_count - 1];
    course.direction = end < course.t ? -1 : 1;
    steps.evaluate(as_time<T>(course.t), steps.memory.y, steps.k(0));
    const bool choose = task.first_step == 0;
    course.h = choose ? first_step(course, end) : task.first_step;
    if (leads) {
      MlpState fresh{};
      fresh.started = finite(course.h);
      if (fresh.started) {
        course.h = task.controller.clip(course.h);
        fresh.control.course = course;
        prepare(fresh.control, span());
      } else {
        course.h = 0;
        fresh.control.course = course;
        fresh.failure = Failure::kNotFinite;
      }
      state() = fresh;
    }
    steps.synchronize();
  }

  // fastnode.control.controllers.initial_step; NaN where the state or its derivative is
  // not finite.
  __device__ double first_step(const Course& course, double end) {
    const T rtol = T(task.rtol), atol = T(task.atol);
    const T *const y = steps.memory.y, *const f = steps.k(0), *const f1 = steps.k(1);
    double sums[2] = {steps.squares(y, rtol, atol, [&](int i) { return y[i]; }),
                      steps.squares(y, rtol, atol, [&](int i) { return f[i]; })};
    total(sums);
    const double d0 = norm(sums[0]), d1 = norm(sums[1]);
    if (!finite(d0) || !finite(d1)) return bit_cast<double>(0x7FF8000000000000ull);
    const double h0 = Controller::trial_step(d0, d1, std::abs(end - course.t));
    const double one = 1, step = course.direction * h0;
    steps.combine(&one, 1, step, steps.memory.stage);
    steps.synchronize();
    steps.evaluate(as_time<T>(course.t + step), steps.memory.stage, steps.k(1));
    double change[1] = {steps.squares(y, rtol, atol, [&](int i) { return f1[i] - f[i]; })};
    total(change);
    return task.controller.first_step(h0, d1, norm(change[0]), PortablePower());
  }

  // A step, accepted or not.
  __device__ void attempt() {
    const Control& control = state().control;
    steps.take_stages(control.course, true);
    double sums[3];
    steps.measure(control.course, task.rtol, task.atol, sums);
    total(sums);
    if (leads) decide(norm(sums[0]), norm(sums[1]), norm(sums[2]));
    steps.synchronize();
    if (!control.moved) return;
    const Course& course = control.course;
    if (real) steps.keep(course, sample);
    const bool inside = steps.inside(control, task.times);
    if (inside) steps.take_further_stages(course.t_before, course.t);
    if (real) steps.save(control, task.times, sample);
    steps.move_on();
  }

  __device__ void decide(double ratio, double derivatives, double states) {
    Control here = state().control;
    conclude(here, span(), ratio);
    if (here.moved) {
      state().interpolated += steps.inside(here, task.times);
      if (blockIdx.x == 0) {
        steps.note(here.course, 0, ratio,
                   stiffness_of(derivatives, states, task.tableau.stability));
      }
    }
    state().control = here;
  }

  __device__ void run() {
    const int64_t from = real ? sample : task.batch - 1;
    steps.load(task.resumed ? task.y : task.y0, from, steps.memory.y);
    if (task.resumed) {
      steps.load(task.f, from, steps.k(0));
      if (leads) state() = *task.state;
      steps.synchronize();
    } else {
      if (real) steps.store(steps.memory.y, task.ys, sample);
      steps.synchronize();
      begin();
    }
    const Control& control = state().control;
    while (control.running && !steps.full(control.course)) attempt();
    finish(control);
  }

  __device__ void finish(const Control& control) {
    if (real) {
      steps.store(steps.memory.y, task.y, sample);
      steps.store(steps.k(0), task.f, sample);
      if (!control.running && control.next < task.output_count) {
        const int found = steps.seen(state().started ? task.tableau.stages : 1);
        if (found != 0) atomicOr(&task.state->seen, found);
      }
    }
    if (blockIdx.x != 0 || !leads) return;
    task.state->control = control;
    task.state->interpolated = state().interpolated;
    task.state->failure = state().failure;
    task.state->started = state().started;
  }
};

template <class T, bool Far>
__global__ void __launch_bounds__(kMlpJointThreads, 1)
    mlp_joint_kernel(const __grid_constant__ MlpTask<T> task) {
  Joint<T, Far>(task).run();
}

template <class T>
int joint(const MlpTask<T>& task, void* cuda_stream) {
  if (task.plan.global_weights)
    return launch_together(mlp_joint_kernel<T, true>, task, cuda_stream);
  return launch_together(mlp_joint_kernel<T, false>, task, cuda_stream);
}

}  // namespace

int mlp_joint_cuda(const MlpTask<float>& task, void* cuda_stream) {
  return joint(task, cuda_stream);
}
int mlp_joint_cuda(const MlpTask<double>& task, void* cuda_stream) {
  return joint(task, cuda_stream);
}

}  // namespace fastnode
