// Launches of the kernels of types.h.
#pragma once

#include <algorithm>

#include "common/cuda_error.h"
#include "mlp/cuda/field.h"

namespace fastnode {

template <class Task>
using MlpKernel = void(Task);

// As much as a block may have, not as much as this launch takes: other threads launch the same
// kernel, and none may lower what another one is about to use.
template <class Task>
int allow_shared(MlpKernel<Task>* kernel, const Task& task) {
  // An argument of a launch is 4 KiB at most.
  static_assert(sizeof(Task) <= 4096);
  return taken(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    int(task.plan.most_shared)));
}

// All blocks are resident together.
template <class Task>
int launch_together(MlpKernel<Task>* kernel, const Task& task, void* cuda_stream) {
  Task copy = task;
  void* arguments[] = {&copy};
  const int threads = task.plan.samples * task.plan.groups;
  if (const int error = allow_shared(kernel, task)) return error;
  return taken(cudaLaunchCooperativeKernel(kernel, task.plan.blocks, threads, arguments,
                                           task.plan.shared,
                                           static_cast<cudaStream_t>(cuda_stream)));
}

// Independent blocks.
template <class Task>
int launch_blocks(MlpKernel<Task>* kernel, const Task& task, int blocks, void* cuda_stream) {
  Task copy = task;
  copy.plan.blocks = blocks;
  void* arguments[] = {&copy};
  const int threads = task.plan.samples * task.plan.groups;
  if (const int error = allow_shared(kernel, task)) return error;
  return taken(cudaLaunchKernel(kernel, blocks, threads, arguments, task.plan.shared,
                                static_cast<cudaStream_t>(cuda_stream)));
}

// As many of them as are resident at once: each loops over its part.
template <class Task>
int launch_independent(MlpKernel<Task>* kernel, const Task& task, void* cuda_stream) {
  const int threads = task.plan.samples * task.plan.groups;
  if (const int error = allow_shared(kernel, task)) return error;
  int device = 0, processors = 1, resident = 1;
  if (const int error = cudaGetDevice(&device)) return taken(error);
  int error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error) return taken(error);
  error =
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, task.plan.shared);
  if (error) return taken(error);
  const int blocks = std::min(task.plan.blocks, processors * std::max(resident, 1));
  return launch_blocks(kernel, task, blocks, cuda_stream);
}

}  // namespace fastnode
