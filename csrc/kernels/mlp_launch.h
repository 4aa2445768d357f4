// Launches of the kernels of mlp_solve_cuda.h.
#pragma once

#include <algorithm>

#include "kernels/mlp_block.h"

namespace fastnode {

template <class T>
using MlpKernel = void(MlpTask<T>);

template <class T>
int allow_shared(MlpKernel<T>* kernel, const MlpTask<T>& task) {
  // An argument of a launch is 4 KiB at most.
  static_assert(sizeof(MlpTask<T>) <= 4096);
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              int(task.plan.shared));
}

// All blocks are on the device together.
template <class T>
int launch_together(MlpKernel<T>* kernel, const MlpTask<T>& task, void* cuda_stream) {
  MlpTask<T> copy = task;
  void* arguments[] = {&copy};
  const int threads = task.plan.samples * task.plan.groups;
  if (const int error = allow_shared(kernel, task)) return error;
  return cudaLaunchCooperativeKernel(kernel, task.plan.blocks, threads, arguments, task.plan.shared,
                                     static_cast<cudaStream_t>(cuda_stream));
}

// As many blocks as the device holds at once: each loops over its part.
template <class T>
int launch_apart(MlpKernel<T>* kernel, const MlpTask<T>& task, void* cuda_stream) {
  MlpTask<T> copy = task;
  void* arguments[] = {&copy};
  const int threads = task.plan.samples * task.plan.groups;
  if (const int error = allow_shared(kernel, task)) return error;
  int device = 0, processors = 1, resident = 1;
  if (const int error = cudaGetDevice(&device)) return error;
  int error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error) return error;
  error =
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, task.plan.shared);
  if (error) return error;
  copy.plan.blocks = std::min(task.plan.blocks, processors * std::max(resident, 1));
  return cudaLaunchKernel(kernel, copy.plan.blocks, threads, arguments, task.plan.shared,
                          static_cast<cudaStream_t>(cuda_stream));
}

}  // namespace fastnode
