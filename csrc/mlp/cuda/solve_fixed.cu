// Steps along a grid: samples and blocks are independent.
#include "mlp/cuda/launch.h"
#include "mlp/cuda/steps.h"

namespace fastnode {
namespace {

template <class T, bool Far>
struct Fixed {
  const MlpTask<T>& task;
  const MlpSteps<T, false, Far> steps;

  __device__ explicit Fixed(const MlpTask<T>& all) : task(all), steps(all, true) {}
  __device__ void run(int64_t sample) const {
    const bool real = sample < task.batch;
    steps.load(task.y0, real ? sample : task.batch - 1, steps.memory.y);
    if (real) steps.store(steps.memory.y, task.ys, sample);
    Course course;
    course.direction = task.grid[task.grid_count - 1] < task.grid[0] ? -1 : 1;
    int64_t next = 1;
    for (int64_t i = 0; i + 1 < task.grid_count; ++i) {
      course.t = task.grid[i];
      course.t1 = task.grid[i + 1];
      course.step = course.t1 - course.t;
      const T t = as_time<T>(course.t);
      steps.synchronize();
      steps.evaluate(task.perturb ? next_number(t, course.direction) : t, steps.memory.y,
                     steps.k(0));
      if (task.kept != nullptr && real) {
        steps.store(steps.memory.y, task.kept + i * task.batch * task.field.dim, sample);
      }
      steps.take_stages(course, task.perturb);
      for (; next < task.output_count && reached(course, task.times[next]); ++next) {
        if (real) save(course, task.times[next], sample, task.ys + next * row());
      }
      steps.each([&](int, int i) { steps.memory.y[i] = steps.memory.y1[i]; });
    }
    steps.synchronize();
  }

  __device__ int64_t row() const { return task.batch * task.field.dim; }

  __device__ static bool reached(const Course& course, double time) {
    return (course.t1 - time) * course.direction >= 0;
  }

  __device__ void save(const Course& course, double time, int64_t sample, T* to) const {
    if (time == course.t1) return steps.store(steps.memory.y1, to, sample);
    const DeviceTableau& tableau = task.tableau;
    steps.each([&](int d, int i) {
      to[sample * task.field.dim + d] =
          steps.memory.y[i] + steps.sum(tableau.solution, tableau.stages, time - course.t, i);
    });
  }
};

template <class T, bool Far>
__global__ void __launch_bounds__(kMlpIndependentThreads, 1)
    mlp_fixed_kernel(const __grid_constant__ MlpTask<T> task) {
  const Fixed<T, Far> fixed(task);
  const int64_t stride = int64_t(gridDim.x) * fixed.steps.samples;
  for (int64_t first = int64_t(blockIdx.x) * fixed.steps.samples; first < task.batch;
       first += stride) {
    fixed.run(first + fixed.steps.s);
  }
}

template <class T>
int fixed(const MlpTask<T>& task, void* cuda_stream) {
  if (task.plan.global_weights)
    return launch_independent(mlp_fixed_kernel<T, true>, task, cuda_stream);
  return launch_independent(mlp_fixed_kernel<T, false>, task, cuda_stream);
}

}  // namespace

int mlp_fixed_cuda(const MlpTask<float>& task, void* cuda_stream) {
  return fixed(task, cuda_stream);
}
int mlp_fixed_cuda(const MlpTask<double>& task, void* cuda_stream) {
  return fixed(task, cuda_stream);
}

int mlp_device(int index, MlpDevice* device) {
  int processors = 0, shared = 0, major = 0;
  int error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, index);
  if (error) return taken(error);
  error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
  if (error) return taken(error);
  error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index);
  *device = {processors, size_t(shared), major >= 8};
  return taken(error);
}

}  // namespace fastnode
