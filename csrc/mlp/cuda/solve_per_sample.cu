// Per-sample stepping. A block has samples of its own, a range of the batch; where one has
// finished, the next one takes its position, so that no evaluation is spent on a sample that stands
// still until the range runs out.
//
// Small fields and many samples (`Alone`): a thread has a sample to itself, never waits, and
// the warp's lanes read the same weights. A step of a (3, 32) field by dopri5 is 6 times 192
// multiplications and 32 activations of some 25 instructions: 6,000 instructions, against 300
// accesses to shared memory for all the rest: counted, not timed.
#include "mlp/cuda/launch.h"
#include "mlp/cuda/steps.h"

namespace fastnode {
namespace {

template <class T, bool Alone, bool Far>
struct PerSample {
  const MlpTask<T>& task;
  const MlpSteps<T, Alone, Far> steps;
  const bool leads;  // of the threads of a sample
  int turn = 0;

  __device__ explicit PerSample(const MlpTask<T>& all)
      : task(all), steps(all, false), leads(steps.g == 0) {}

  // The block's samples.
  __device__ int64_t first() const { return task.batch * blockIdx.x / gridDim.x; }
  __device__ int64_t last() const { return task.batch * (blockIdx.x + 1) / gridDim.x; }

  __device__ MlpBlockSample& mine() const { return steps.memory.held[steps.s]; }
  __device__ const double* times(int64_t sample) const {
    return task.times + sample * task.output_count;
  }
  __device__ Span span(int64_t sample) const {
    const double* const outputs = times(sample);
    return {task.controller,
            outputs,
            outputs + task.output_count - 1,
            task.output_count,
            task.max_num_steps,
            true,
            nullptr,
            nullptr,
            0};
  }

  // Over the threads of a sample, in their order; all have it. Two buffers are used in turn: the
  // sums of one barrier have been read at the next.
  template <int N>
  __device__ void total(double (&values)[N]) {
    if constexpr (Alone) return;
    const int sharing = MlpMemory<T>::sharing(task.field, task.plan);
    double* const sums = steps.memory.sums + (turn++ % 2) * 3 * sharing * steps.samples;
    if (steps.g < sharing) {
#pragma unroll
      for (int n = 0; n < N; ++n)
        sums[(n * sharing + steps.g) * steps.samples + steps.s] = values[n];
    }
    steps.synchronize();
#pragma unroll
    for (int n = 0; n < N; ++n) {
      values[n] = 0;
      for (int i = 0; i < sharing; ++i)
        values[n] += sums[(n * sharing + i) * steps.samples + steps.s];
    }
  }

  __device__ double norm(double sum) const { return sqrt(sum / double(task.field.dim)); }

  // The initial derivative and the first step of a sample, or of the last one where there is none.
  __device__ void begin(int64_t sample) {
    const bool real = sample < last();
    const int64_t from = real ? sample : last() - 1;
    Course course;
    const double* const outputs = times(from);
    course.t = outputs[0];
    course.direction = task.directions[from];
    steps.load(task.y0, from, steps.memory.y);
    if (real) steps.store(steps.memory.y, task.ys, sample);
    steps.synchronize();
    steps.evaluate(as_time<T>(course.t), steps.memory.y, steps.k(0));
    if (real) steps.store(steps.k(0), task.f, sample);
    const T *const y = steps.memory.y, *const f = steps.k(0);
    double odd[3] = {0, 0, 0};
    steps.each([&](int, int i) {
      odd[0] += f[i] != f[i];
      odd[1] += f[i] - f[i] != 0 && f[i] == f[i];
      odd[2] += y[i] - y[i] != 0;
    });
    total(odd);
    MlpState state{};
    state.started = odd[0] + odd[1] + odd[2] == 0;
    state.seen = (odd[0] > 0 ? 1 : 0) | (odd[1] > 0 ? 2 : 0);
    const double chosen =
        task.first_steps != nullptr ? task.first_steps[from] : first_step(course, from, outputs);
    if (state.started) {
      course.h = task.controller.clip(chosen);
      state.seen = 0;
    }
    state.control.course = course;
    if (state.started) prepare(state.control, span(from));
    if (!state.control.running) state.failure = why(state);
    if (real && leads) task.state[sample] = state;
  }

  __device__ double first_step(const Course& course, int64_t sample, const double* outputs) {
    const T rtol = T(task.rtols[sample]), atol = T(task.atols[sample]);
    const T *const y = steps.memory.y, *const f = steps.k(0), *const f1 = steps.k(1);
    double sums[2] = {steps.squares(y, rtol, atol, [&](int i) { return y[i]; }),
                      steps.squares(y, rtol, atol, [&](int i) { return f[i]; })};
    total(sums);
    const double d1 = norm(sums[1]), room = std::abs(outputs[task.output_count - 1] - course.t);
    const double h0 = Controller::trial_step(norm(sums[0]), d1, room);
    const double one = 1, step = course.direction * h0;
    steps.combine(&one, 1, step, steps.memory.stage);
    steps.synchronize();
    steps.evaluate(as_time<T>(course.t + step), steps.memory.stage, steps.k(1));
    double change[1] = {steps.squares(y, rtol, atol, [&](int i) { return f1[i] - f[i]; })};
    total(change);
    return task.controller.first_step(h0, d1, norm(change[0]), PortablePower());
  }

  __device__ Failure why(const MlpState& state) const {
    if (state.control.next >= task.output_count) return Failure::kNone;
    if (!state.started) return Failure::kNotFinite;
    return failure_of(state.control.course, task.max_num_steps);
  }

  // The next of the block's samples that has a step to take, if there is one.
  __device__ void admit(MlpBlockSample& to) const {
    while (true) {
      const int64_t sample = first() + atomicAdd(steps.memory.next, 1);
      if (sample >= last()) return;
      to.state = task.state[sample];
      if (!to.state.control.running) continue;
      to.rtol = task.rtols[sample];
      to.atol = task.atols[sample];
      to.sample = sample;
      to.busy = to.arrived = true;
      return;
    }
  }

  __device__ void run() {
    if (threadIdx.x == 0) *steps.memory.next = 0;
    if (leads) mine() = MlpBlockSample{};
    if (!task.resumed) {
      for (int64_t base = first(); base < last(); base += steps.samples) begin(base + steps.s);
    }
    // Any thread of the block may take a sample, whichever began it.
    __syncthreads();
    while (true) {
      MlpBlockSample& mine = this->mine();
      if (leads && !mine.busy) admit(mine);
      if (!steps.any(leads && mine.busy)) return;
      if (mine.busy && mine.arrived) {
        steps.load(task.resumed ? task.y : task.y0, mine.sample, steps.memory.y);
        steps.load(task.f, mine.sample, steps.k(0));
      }
      const bool leaves = attempt(mine);
      steps.synchronize();
      if (leads && leaves) mine.busy = false;
    }
  }

  // A step, accepted or not; whether it was the sample's last. Threads without a sample take part
  // in the barriers.
  __device__ bool attempt(MlpBlockSample& mine) {
    const Control& control = mine.state.control;
    steps.take_stages(control.course, true);
    double sums[3];
    steps.measure(control.course, mine.rtol, mine.atol, sums);
    total(sums);
    if (leads && mine.busy) decide(mine, norm(sums[0]), norm(sums[1]), norm(sums[2]));
    steps.synchronize();
    const bool moved = mine.busy && control.moved;
    const double* const outputs = times(mine.sample);
    if (task.tableau.further > 0 && steps.any(moved && steps.inside(control, outputs))) {
      steps.take_further_stages(control.course.t_before, control.course.t);
    }
    if (moved) {
      steps.keep(control.course, mine.sample);
      steps.save(control, outputs, mine.sample);
      steps.move_on();
    }
    const bool leaves = mine.busy && (!control.running || steps.full(control.course));
    if (leaves) leave(mine);
    return leaves;
  }

  __device__ void decide(MlpBlockSample& mine, double ratio, double derivatives,
                         double states) const {
    Control here = mine.state.control;
    conclude(here, span(mine.sample), ratio);
    if (here.moved) {
      mine.state.interpolated += steps.inside(here, times(mine.sample));
      steps.note(here.course, mine.sample, ratio,
                 stiffness_of(derivatives, states, task.tableau.stability));
    }
    mine.arrived = false;
    mine.state.control = here;
    if (!here.running) mine.state.failure = why(mine.state);
  }

  __device__ void leave(const MlpBlockSample& mine) const {
    steps.store(steps.memory.y, task.y, mine.sample);
    steps.store(steps.k(0), task.f, mine.sample);
    MlpState& saved = task.state[mine.sample];
    if (mine.state.failure != Failure::kNone) {
      const int found = steps.seen(task.tableau.stages);
      if (found != 0) atomicOr(&saved.seen, found);
    }
    if (!leads) return;
    saved.control = mine.state.control;
    saved.interpolated = mine.state.interpolated;
    saved.failure = mine.state.failure;
  }
};

template <class T, bool Alone, bool Far>
__global__ void __launch_bounds__(kMlpIndependentThreads, 1)
    mlp_per_sample_kernel(const __grid_constant__ MlpTask<T> task) {
  PerSample<T, Alone, Far>(task).run();
}

template <class T>
int sample_major(const MlpTask<T>& task, void* cuda_stream) {
  const auto kernel = task.plan.alone            ? mlp_per_sample_kernel<T, true, false>
                      : task.plan.global_weights ? mlp_per_sample_kernel<T, false, true>
                                                 : mlp_per_sample_kernel<T, false, false>;
  return launch_independent(kernel, task, cuda_stream);
}

}  // namespace

int mlp_per_sample_cuda(const MlpTask<float>& task, void* cuda_stream) {
  return sample_major(task, cuda_stream);
}
int mlp_per_sample_cuda(const MlpTask<double>& task, void* cuda_stream) {
  return sample_major(task, cuda_stream);
}

}  // namespace fastnode
