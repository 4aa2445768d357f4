// Errors of the CUDA runtime that are returned to the caller, which reports them.
#pragma once

#include <cuda_runtime.h>

namespace fastnode {

// The runtime keeps the error of a call until it is asked: the next check after a launch, ours or
// torch's, would take it for its own.
inline int taken(int error) {
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

}  // namespace fastnode
