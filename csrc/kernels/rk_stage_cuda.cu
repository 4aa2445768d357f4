#include <cuda_runtime.h>

#include "kernels/rk_stage.h"

namespace fastnode {
namespace {

constexpr int kThreads = 256;
// Enough blocks to fill the largest device several times over; the loop takes the rest.
constexpr int64_t kMaxBlocks = 4096;

// 16 bytes: the widest access of a thread.
template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T values[kSize];
};

template <class T>
__device__ T stage_value(const T* y, const Terms<T>& terms, int64_t i) {
  acc_t<T> sum = load(y[i]);
#pragma unroll 4
  for (int j = 0; j < terms.count; ++j) sum = add_term(sum, terms.c[j], load(terms.k[j][i]));
  return store<T>(sum);
}

template <class T>
__device__ Pack<T> stage_pack(const T* y, const Terms<T>& terms, int64_t p) {
  Pack<T> pack = reinterpret_cast<const Pack<T>*>(y)[p];
  acc_t<T> sum[Pack<T>::kSize];
#pragma unroll
  for (int i = 0; i < Pack<T>::kSize; ++i) sum[i] = load(pack.values[i]);
#pragma unroll 4
  for (int j = 0; j < terms.count; ++j) {
    const Pack<T> k = reinterpret_cast<const Pack<T>*>(terms.k[j])[p];
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; ++i) {
      sum[i] = add_term(sum[i], terms.c[j], load(k.values[i]));
    }
  }
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
    out[i] = stage_value(y, terms, i);
  }
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <class T>
int launch(const T* y, const Terms<T>& terms, int64_t numel, T* out, void* cuda_stream) {
  if (numel == 0) return cudaSuccess;
  bool wide = aligned(y) && aligned(out);
  for (int j = 0; j < terms.count; ++j) wide = wide && aligned(terms.k[j]);
  const int64_t packs = wide ? numel / Pack<T>::kSize : 0;
  const int64_t items = packs > 0 ? packs : numel;
  const int64_t wanted = (items + kThreads - 1) / kThreads;
  const int blocks = int(wanted < kMaxBlocks ? wanted : kMaxBlocks);
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
