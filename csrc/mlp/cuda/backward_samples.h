// The samples whose backward pass a block runs, and the steps that each of them took.
#pragma once

#include <cuda_runtime.h>

#include "mlp/cuda/backward.h"

namespace fastnode {

template <class T>
struct MlpBackwardQueue {
  const MlpBackTask<T>& task;

  // The block's samples.
  __device__ int64_t first() const { return task.batch * blockIdx.x / gridDim.x; }
  __device__ int64_t last() const { return task.batch * (blockIdx.x + 1) / gridDim.x; }
  __device__ int64_t count() const { return last() - first(); }

  __device__ const double* times(int64_t sample) const {
    return task.offsets != nullptr ? task.times + sample * task.output_count : task.times;
  }
  __device__ int64_t steps(int64_t sample) const {
    return task.offsets != nullptr ? task.offsets[sample + 1] - task.offsets[sample] : task.steps;
  }
  // Where step n of a sample begins; the number of its steps is where the last one ends.
  __device__ double edge(int64_t sample, int64_t n) const {
    if (task.offsets == nullptr) return task.edges[n];
    return n == 0 ? times(sample)[0] : task.edges[task.offsets[sample] + n - 1];
  }
  __device__ double direction(int64_t sample) const {
    if (task.offsets != nullptr) return task.directions[sample];
    return task.edges[task.steps] < task.edges[0] ? -1 : 1;
  }
  __device__ const T* of_output(int64_t output, int64_t sample) const {
    return task.of_ys + (output * task.batch + sample) * task.field.dim;
  }

  // The block's sample `number` into a free position, which stays free if that took no step.
  __device__ void admit(MlpBackwardSample& at, int64_t number) const {
    const int64_t sample = first() + number, taken = steps(sample);
    if (taken == 0) {
      for (int d = 0; d < task.field.dim; ++d) {
        task.gy0[sample * task.field.dim + d] = of_output(0, sample)[d];
      }
      return;
    }
    at.sample = sample;
    at.step = taken - 1;
    at.direction = direction(sample);
    // A sample that failed has outputs after its last step.
    at.until = first_after(times(sample), 1, task.output_count, edge(sample, taken), at.direction);
    at.busy = at.arrived = true;
  }

  __device__ void plan(MlpBackwardSample& at) const {
    at.t = edge(at.sample, at.step);
    at.t1 = edge(at.sample, at.step + 1);
    const double* const outputs = times(at.sample);
    at.from = first_after(outputs, 1, at.until, at.t, at.direction);
    at.inner = at.until - (at.from < at.until && outputs[at.until - 1] == at.t1);
  }
};

}  // namespace fastnode
