#include "kernels/pack.h"
#include "kernels/rk_adjoint.h"

namespace fastnode {
namespace {

template <int Size, class T>
__device__ __forceinline__ void sum_at(const T* base, const Terms<T>& terms, int64_t i, T* out) {
  Items<Size, T> items{};
  if (base != nullptr) items.set(base, i);
#pragma unroll 4
  for (int j = 0; j < terms.count; ++j) items.add(terms.c[j], terms.k[j], i);
  items.write(out, i);
}

// The first `packs` packs by wide access, the rest element by element.
template <class T>
__global__ void __launch_bounds__(kThreads)
    rk_adjoint_kernel(const T* base, const __grid_constant__ Terms<T> terms, int64_t packs,
                      int64_t numel, T* out) {
  constexpr int kSize = Pack<T>::kSize;
  const int64_t first = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t p = first; p < packs; p += stride) sum_at<kSize>(base, terms, p * kSize, out);
  for (int64_t i = packs * kSize + first; i < numel; i += stride) sum_at<1>(base, terms, i, out);
}

template <class T>
int launch(const T* base, const Terms<T>& terms, int64_t numel, T* out, void* cuda_stream) {
  if (numel == 0) return cudaSuccess;
  const bool wide = aligned(base) && aligned(out) && all_aligned(terms);
  const int64_t packs = wide ? numel / Pack<T>::kSize : 0;
  const int blocks = blocks_for(packs > 0 ? packs : numel);
  rk_adjoint_kernel<T><<<blocks, kThreads, 0, static_cast<cudaStream_t>(cuda_stream)>>>(
      base, terms, packs, numel, out);
  return cudaGetLastError();
}

}  // namespace

#define FASTNODE_DEFINE_RK_ADJOINT(T)                                              \
  int rk_adjoint_cuda(const T* base, const Terms<T>& terms, int64_t numel, T* out, \
                      void* cuda_stream) {                                         \
    return launch(base, terms, numel, out, cuda_stream);                           \
  }
FASTNODE_DEFINE_RK_ADJOINT(float)
FASTNODE_DEFINE_RK_ADJOINT(double)
FASTNODE_DEFINE_RK_ADJOINT(BFloat16)
FASTNODE_DEFINE_RK_ADJOINT(Half)
#undef FASTNODE_DEFINE_RK_ADJOINT

}  // namespace fastnode
