// The shared memory of a block, and places in it: a function that is told places, not pointers,
// knows that what it reads is shared memory.
#pragma once

#include <cuda_runtime.h>

namespace fastnode {

#if defined(__CUDACC__)
extern __shared__ __align__(16) unsigned char mlp_shared[];
__device__ __forceinline__ unsigned char* shared_memory() { return mlp_shared; }
#else
inline unsigned char* shared_memory() { return emulation::shared(); }
#endif

// In bytes from its beginning.
__device__ __forceinline__ int place_of(const void* pointer) {
  return int(static_cast<const unsigned char*>(pointer) - shared_memory());
}
template <class X>
__device__ __forceinline__ X* at_place(int place) {
  return reinterpret_cast<X*>(shared_memory() + place);
}

}  // namespace fastnode
