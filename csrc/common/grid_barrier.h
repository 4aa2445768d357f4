// A meeting of all blocks of a grid that are on the device together (a cooperative launch).
#pragma once

#include <cuda_runtime.h>

namespace fastnode {

// `met` counts arrivals, from zero; `turn` counts meetings, from zero, alike in all blocks. What
// threads wrote to device memory before is seen after it by those that read past the first cache
// (__ldcg), which is not told of others' writes.
__device__ inline void grid_barrier(unsigned long long* met, unsigned long long turn) {
  __syncthreads();
  if (threadIdx.x == 0) {
    const unsigned long long all = (turn + 1) * gridDim.x;
    __threadfence();
    atomicAdd(met, 1ull);
    while (*const_cast<volatile unsigned long long*>(met) < all) __nanosleep(20);
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

// Over the block of `warps` whole warps, in one order; all threads have it. `memory` has N times
// `warps` numbers that nobody reads any more.
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
