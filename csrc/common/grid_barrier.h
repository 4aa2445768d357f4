// A barrier for all blocks of a grid that are resident together (a cooperative launch).
#pragma once

#include <cuda_runtime.h>

namespace fastnode {

// `arrivals` counts arrivals and `turn` barriers, from zero; all blocks pass the same `turn`.
// Writes to global memory before the barrier are visible after it to loads that bypass the L1 cache
// (__ldcg), which is not coherent.
__device__ inline void grid_barrier(unsigned long long* arrivals, unsigned long long turn) {
  __syncthreads();
  if (threadIdx.x == 0) {
    const unsigned long long all = (turn + 1) * gridDim.x;
    __threadfence();
    atomicAdd(arrivals, 1ull);
    while (*const_cast<volatile unsigned long long*>(arrivals) < all) __nanosleep(20);
    __threadfence();
  }
  __syncthreads();
}

// The sum of each value over the lanes of a warp, in one order; the first lane has it.
template <int N>
__device__ inline void warp_sum(double (&values)[N]) {
  for (int offset = 16; offset > 0; offset /= 2) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      values[n] += __shfl_down_sync(0xFFFFFFFFu, values[n], offset, 32);
    }
  }
}

// Over the block of `warps` whole warps, in one order; all threads have it. `memory` holds N times
// `warps` numbers that no thread still reads.
template <int N>
__device__ inline void block_sum(double (&values)[N], double* memory, int warps) {
  warp_sum(values);
  if (threadIdx.x % 32 == 0) {
#pragma unroll
    for (int n = 0; n < N; ++n) memory[n * warps + threadIdx.x / 32] = values[n];
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) {
    values[n] = 0;
    for (int warp = 0; warp < warps; ++warp) values[n] += memory[n * warps + warp];
  }
}

}  // namespace fastnode
