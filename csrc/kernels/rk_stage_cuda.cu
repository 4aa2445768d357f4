#include "kernels/pack.h"
#include "kernels/rk_stage.h"

namespace fastnode {
namespace {

template <class T>
__device__ Pack<T> stage_pack(const T* y, const Terms<T>& terms, int64_t p) {
  Pack<T> pack = load_pack(y, p);
  acc_t<T> sum[Pack<T>::kSize];
#pragma unroll
  for (int i = 0; i < Pack<T>::kSize; ++i) sum[i] = load(pack.values[i]);
  add_packs(sum, terms, p);
#pragma unroll
  for (int i = 0; i < Pack<T>::kSize; ++i) pack.values[i] = store<T>(sum[i]);
  return pack;
}

// The first `packs` packs by wide access, the rest element by element.
template <class T>
__global__ void __launch_bounds__(kThreads)
    rk_stage_kernel(const T* __restrict__ y, Terms<T> terms, int64_t packs, int64_t numel,
                    T* __restrict__ out) {
  const int64_t first = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t p = first; p < packs; p += stride) {
    reinterpret_cast<Pack<T>*>(out)[p] = stage_pack(y, terms, p);
  }
  for (int64_t i = packs * Pack<T>::kSize + first; i < numel; i += stride) {
    out[i] = store<T>(add_elements<T>(load(y[i]), terms, i));
  }
}

template <class T>
int launch(const T* y, const Terms<T>& terms, int64_t numel, T* out, void* cuda_stream) {
  if (numel == 0) return cudaSuccess;
  const bool wide = aligned(y) && aligned(out) && all_aligned(terms);
  const int64_t packs = wide ? numel / Pack<T>::kSize : 0;
  const int blocks = blocks_for(packs > 0 ? packs : numel);
  rk_stage_kernel<T><<<blocks, kThreads, 0, static_cast<cudaStream_t>(cuda_stream)>>>(
      y, terms, packs, numel, out);
  return cudaGetLastError();
}

}  // namespace

#define FASTNODE_DEFINE_RK_STAGE(T)                                                                \
  int rk_stage_cuda(const T* y, const Terms<T>& terms, int64_t numel, T* out, void* cuda_stream) { \
    return launch(y, terms, numel, out, cuda_stream);                                              \
  }
FASTNODE_DEFINE_RK_STAGE(float)
FASTNODE_DEFINE_RK_STAGE(double)
FASTNODE_DEFINE_RK_STAGE(BFloat16)
FASTNODE_DEFINE_RK_STAGE(Half)
#undef FASTNODE_DEFINE_RK_STAGE

}  // namespace fastnode
