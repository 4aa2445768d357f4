#include "common/pack.h"
#include "kernels/rk/rk_adjoint.h"

namespace fastnode {
namespace {

// The first `packs` packs by wide access, the rest element by element.
template <class T>
__global__ void __launch_bounds__(kThreads, kResident)
    rk_adjoint_kernel(const T* base, const __grid_constant__ Terms<T> terms, int64_t packs,
                      int64_t numel, T* out) {
  const auto weights = weights_of(terms);
  const auto combine = [&](auto items, int64_t i) {
    if (base != nullptr) items.set(base, i);
    items.add(terms.k, weights, terms.count, i);
    items.write(out, i);
  };
  const int64_t first = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t p = first; p < packs; p += stride) combine(Items<kPack<T>, T>{}, p * kPack<T>);
  for (int64_t i = packs * kPack<T> + first; i < numel; i += stride) combine(Items<1, T>{}, i);
}

template <class T>
int launch(const T* base, const Terms<T>& terms, int64_t numel, T* out, void* cuda_stream) {
  if (numel == 0) return cudaSuccess;
  const bool wide = aligned(base) && aligned(out) && all_aligned(terms);
  const int64_t packs = wide ? numel / kPack<T> : 0;
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
