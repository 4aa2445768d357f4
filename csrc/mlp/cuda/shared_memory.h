// The shared memory of a block, and offsets into it: from an offset, other than from a pointer, the
// compiler knows that it reads shared memory.
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
__device__ __forceinline__ int offset_of(const void* pointer) {
  return int(static_cast<const unsigned char*>(pointer) - shared_memory());
}
template <class X>
__device__ __forceinline__ X* at_offset(int offset) {
  return reinterpret_cast<X*>(shared_memory() + offset);
}

}  // namespace fastnode
