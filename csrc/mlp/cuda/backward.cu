// The backward pass through the steps of a solve, for samples that share their steps and for
// samples that do not: a sample stays in its position of the block until its first step is done.
#include "common/grid_barrier.h"
#include "mlp/cuda/backward_samples.h"
#include "mlp/cuda/field_vjp.h"
#include "mlp/cuda/launch.h"
#include "mlp/cuda/steps.h"

namespace fastnode {
namespace {

template <class T, bool Far>
struct Backward {
  const MlpBackTask<T>& task;
  const MlpBackMemory<T> own;
  const MlpSteps<T, false, Far> steps;
  const MlpBackwardQueue<T> queue;
  const bool leads;  // of the threads of a sample
  int turn = 0;

  __device__ explicit Backward(const MlpBackTask<T>& all) : Backward(all, lay(all)) {}
  __device__ Backward(const MlpBackTask<T>& all, const MlpBackMemory<T>& laid)
      : task(all), own(laid), steps(all, laid), queue{all}, leads(steps.g == 0) {}

  __device__ static MlpBackMemory<T> lay(const MlpBackTask<T>& all) {
    MlpBackMemory<T> memory;
    memory.lay(shared_memory(), all.field, all.tableau, all.plan);
    return memory;
  }

  __device__ int threads() const { return steps.samples * steps.groups; }
  __device__ double* rates() const { return task.output_rates + blockIdx.x * task.output_count; }

  __device__ T* sums() const {
    if (task.sums == nullptr) return nullptr;
    return task.plan.sums_shared ? own.totals : task.sums + blockIdx.x * mlp_numbers(task.field);
  }

  __device__ void begin() const {
    if (threadIdx.x == 0) {
      *steps.memory.next = 0;
      MlpBackTable<T>& table = static_cast<MlpBackTable<T>&>(*steps.memory.table);
      table.hidden = offset_of(own.hidden);
      table.derivatives = offset_of(own.derivatives);
      table.times = offset_of(own.times);
      table.sums = sums();
    }
    if (leads) own.samples[steps.s] = MlpBackwardSample{};
    if (T* const to = sums()) {
      const int64_t numbers = mlp_numbers(task.field);
      for (int64_t i = threadIdx.x; i < numbers; i += threads()) to[i] = 0;
    }
    if (task.output_rates != nullptr) {
      for (int64_t i = threadIdx.x; i < task.output_count; i += threads()) rates()[i] = 0;
    }
    // A position without a sample has finite numbers, and zero gradients.
    steps.each(
        [&](int, int i) { steps.memory.y[i] = steps.k(0)[i] = own.gy[i] = own.carried[i] = 0; });
    __syncthreads();
  }

  __device__ void run() {
    begin();
    while (true) {
      MlpBackwardSample& mine = own.samples[steps.s];
      admit(mine);
      if (!steps.any(leads && mine.busy)) break;
      if (leads && mine.busy) queue.plan(mine);
      __syncthreads();
      step_back(mine);
      if (leads && mine.busy) {
        mine.arrived = false;
        mine.until = mine.from;
        if (mine.step-- == 0) mine = MlpBackwardSample{};
      }
    }
    if (task.sums == nullptr || !task.plan.sums_shared) return;
    const int64_t numbers = mlp_numbers(task.field);
    T* const to = task.sums + blockIdx.x * numbers;
    for (int64_t i = threadIdx.x; i < numbers; i += threads()) to[i] = own.totals[i];
  }

  // Samples into free positions, in the order of both, so that they get the same ones in each run.
  // Each thread reads what it needs of its own, as one by one the reads would wait for each other.
  __device__ void admit(MlpBackwardSample& mine) const {
    int& next = *steps.memory.next;
    while (steps.any(leads && !mine.busy && next < queue.count())) {
      int before = 0, free = 0;
      for (int i = 0; i < steps.samples; ++i) {
        before += i < steps.s && !own.samples[i].busy;
        free += !own.samples[i].busy;
      }
      const int64_t begin = next;
      __syncthreads();
      if (leads && !mine.busy && begin + before < queue.count()) queue.admit(mine, begin + before);
      if (threadIdx.x == 0) next = int(begin + free < queue.count() ? begin + free : queue.count());
      __syncthreads();
    }
  }

  // Read again where it is needed, as numbers that live across a VJP take registers from it.
  __device__ static Course course_of(const MlpBackwardSample& at) {
    Course course;
    course.t = at.t;
    course.t1 = at.t1;
    course.step = at.t1 - at.t;
    course.direction = at.direction;
    return course;
  }

  // A step of each sample; positions without one take part in the barriers.
  __device__ void step_back(const MlpBackwardSample& at) {
    const DeviceTableau& tableau = task.tableau;
    const bool adaptive = task.adaptive, busy = at.busy;
    if (busy) {
      const int64_t row = task.batch * task.field.dim;
      const T* const from = task.kept + at.step * (adaptive ? 2 : 1) * row;
      steps.load(from, at.sample, steps.memory.y);
      if (adaptive) steps.load(from + row, at.sample, steps.k(0));
      if (at.arrived) steps.each([&](int, int i) { own.gy[i] = own.carried[i] = 0; });
    }
    if (!adaptive) {
      steps.synchronize();
      steps.evaluate(first_time(course_of(at)), steps.memory.y, steps.k(0));
    }
    steps.take_stages(course_of(at), adaptive || task.perturb);
    const bool derivatives_needed = at.from < (task.output_rates != nullptr ? at.until : at.inner);
    int rows = tableau.stages;
    if (tableau.further > 0 && steps.any(derivatives_needed)) {
      steps.take_further_stages(at.t, at.t1);
      rows += tableau.further;
    }
    if (task.output_rates != nullptr) add_rates();
    if (at.inner < at.until) {
      const T* const of_end = queue.of_output(at.inner, at.sample);
      steps.each([&](int d, int i) { own.gy[i] += of_end[d]; });
    }
    for (int j = rows; j-- > (adaptive ? 1 : 0);) {
      gather(j, rows, at);
      if (j == 0) {
        steps.each([&](int, int i) { steps.memory.stage[i] = steps.memory.y[i]; });
        vjp(first_time(course_of(at)), 0);
        continue;
      }
      steps.combine(tableau.row(j), j, at.t1 - at.t, steps.memory.stage);
      vjp(time_of(course_of(at), j), j);
      // The state of the last stage is the one at the end of the step.
      if (tableau.fsal && j == tableau.stages - 1) {
        steps.each([&](int, int i) { steps.k(j)[i] += own.gy[i]; });
      }
    }
    if (adaptive) gather(0, rows, at);
    steps.each([&](int d, int i) {
      T sum = tableau.fsal ? T(0) : own.gy[i];
      for (int j = adaptive ? 1 : 0; j < rows; ++j) sum += steps.k(j)[i];
      for (int64_t o = at.from; o < at.inner; ++o) sum += queue.of_output(o, at.sample)[d];
      own.gy[i] = sum;
      if (adaptive) own.carried[i] = own.g[i];
    });
    // Read before the barrier, after which leaders overwrite it.
    const bool done = busy && at.step == 0;
    const int64_t sample = at.sample;
    const double t = at.t;
    if (steps.any(done)) finish(sample, t, done);
  }

  // Overwrites k_j by J^T g of stage j, whose state is in memory.stage.
  __device__ void vjp(T time, int j) const {
    if (leads) own.times[steps.s] = time;
    steps.synchronize();
    mlp_vjp<T, Far>(time, offset_of(steps.memory.stage), offset_of(own.g), offset_of(steps.k(j)));
  }

  // The gradient of k_j: from the outputs, from the stages after it up to `rows`, and
  // from the step after this one.
  __device__ void gather(int j, int rows, const MlpBackwardSample& at) const {
    const DeviceTableau& tableau = task.tableau;
    const double step = at.t1 - at.t, of_solution = tableau.solution[j];
    const bool carried = task.adaptive && j == tableau.stages - 1;
    const int64_t size = int64_t(task.field.dim) * steps.samples;
    steps.each([&](int, int i) {
      T sum = carried ? own.carried[i] : T(0);
      for (int m = j + 1; m < rows; ++m) {
        const double weight = tableau.row(m)[j];
        if (weight != 0) sum = add_term(sum, T(step * weight), steps.memory.k[m * size + i]);
      }
      if (!tableau.fsal && of_solution != 0) {
        sum = add_term(sum, T(step * of_solution), own.gy[i]);
      }
      own.g[i] = sum;
    });
    for (int64_t o = at.from; o < at.inner; ++o) {
      const double time = queue.times(at.sample)[o];
      const double weight =
          task.adaptive ? dense_weight(tableau, j, at.t, at.t1, time) : of_solution * (time - at.t);
      if (weight == 0) continue;
      const T* const row = queue.of_output(o, at.sample);
      steps.each([&](int d, int i) { own.g[i] = add_term(own.g[i], T(weight), row[d]); });
    }
  }

  // For outputs in a step that all samples share: the sum over samples of the output's gradient
  // times the solution's derivative there.
  __device__ void add_rates() {
    const MlpBackwardSample& all = own.samples[0];
    const bool busy = own.samples[steps.s].busy;
    for (int64_t o = all.from; o < all.until; ++o) {
      const double time = task.times[o];
      double total[1] = {0};
      if (busy) {
        const T* const row = queue.of_output(o, own.samples[steps.s].sample);
        steps.each([&](int d, int i) {
          T derivative = 0;
          for (int j = 0; j < task.tableau.stages + task.tableau.further; ++j) {
            const double weight = dense_derivative_weight(task.tableau, j, all.t, all.t1, time);
            if (weight != 0) derivative = add_term(derivative, T(weight), steps.k(j)[i]);
          }
          total[0] += double(row[d]) * double(derivative);
        });
      }
      block_sum(total, steps.memory.sums + (turn++ % 2) * (kMlpIndependentThreads / 32),
                threads() / 32);
      if (threadIdx.x == 0) rates()[o] += total[0];
    }
  }

  // Samples whose first step is done, if `arrived`.
  __device__ void finish(int64_t sample, double t, bool arrived) const {
    if (task.adaptive) {
      steps.each([&](int, int i) {
        steps.memory.stage[i] = steps.memory.y[i];
        own.g[i] = arrived ? own.carried[i] : T(0);
      });
      vjp(as_time<T>(t), 0);
    }
    if (!arrived) return;
    const T* const of_start = queue.of_output(0, sample);
    steps.each([&](int d, int i) {
      const T from_k1 = task.adaptive ? steps.k(0)[i] : T(0);
      task.gy0[sample * task.field.dim + d] = own.gy[i] + from_k1 + of_start[d];
      own.gy[i] = own.carried[i] = 0;
    });
  }

  // Along a grid, of the first stage.
  __device__ T first_time(const Course& course) const {
    const T t = as_time<T>(course.t);
    return task.perturb ? next_number(t, course.direction) : t;
  }
  __device__ T time_of(const Course& course, int j) const {
    const double c = task.tableau.fractions[j];
    if (j >= task.tableau.stages) return as_time<T>(course.t + rounded_product(c, course.step));
    if (c == 1 && !task.adaptive && !task.perturb) return as_time<T>(course.t1);
    return stage_time<T>(course, c);
  }
};

template <class T, bool Far>
__global__ void __launch_bounds__(kMlpIndependentThreads, mlp_back_blocks<T>(Far))
    mlp_backward_kernel(const __grid_constant__ MlpBackTask<T> task) {
  Backward<T, Far>(task).run();
}

template <class T>
int backward(const MlpBackTask<T>& task, void* cuda_stream) {
  const auto kernel =
      task.plan.global_weights ? mlp_backward_kernel<T, true> : mlp_backward_kernel<T, false>;
  return launch_blocks(kernel, task, task.plan.blocks, cuda_stream);
}

}  // namespace

int mlp_backward_cuda(const MlpBackTask<float>& task, void* cuda_stream) {
  return backward(task, cuda_stream);
}
int mlp_backward_cuda(const MlpBackTask<double>& task, void* cuda_stream) {
  return backward(task, cuda_stream);
}

}  // namespace fastnode
