#include "common/pack.h"
#include "kernels/rk/rk_stage.h"
#include "step_control/rk_control.h"

namespace fastnode {
namespace {

// The first `packs` packs by wide access, the rest element by element.
template <class T, class K>
__global__ void __launch_bounds__(kThreads, kResident)
    rk_stage_kernel(const T* __restrict__ y, const __grid_constant__ K terms, int64_t packs,
                    int64_t numel, T* __restrict__ out) {
  const auto weights = weights_of(terms);
  const auto combine = [&](auto items, int64_t i) {
    const auto state = items.read(y, i);
    items.add(terms.k, weights, terms.count, i);
    items.add_to(state);
    items.write(out, i);
  };
  const int64_t first = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t p = first; p < packs; p += stride) combine(Items<kPack<T>, T>(), p * kPack<T>);
  for (int64_t i = packs * kPack<T> + first; i < numel; i += stride) combine(Items<1, T>(), i);
}

template <class T, class K>
int launch(const T* y, const K& terms, int64_t numel, T* out, void* cuda_stream) {
  if (numel == 0) return cudaSuccess;
  const bool wide = aligned(y) && aligned(out) && all_aligned(terms);
  const int64_t packs = wide ? numel / kPack<T> : 0;
  const int blocks = blocks_for(packs > 0 ? packs : numel);
  rk_stage_kernel<T, K><<<blocks, kThreads, 0, static_cast<cudaStream_t>(cuda_stream)>>>(
      y, terms, packs, numel, out);
  return cudaGetLastError();
}

}  // namespace

#define FASTNODE_DEFINE_RK_STAGE(T)                                                                \
  int rk_stage_cuda(const T* y, const Terms<T>& terms, int64_t numel, T* out, void* cuda_stream) { \
    return launch(y, terms, numel, out, cuda_stream);                                              \
  }                                                                                                \
  int rk_step_stage_cuda(const T* y, const StepTerms<T>& terms, int64_t numel, T* out,             \
                         void* cuda_stream) {                                                      \
    return launch(y, terms, numel, out, cuda_stream);                                              \
  }
FASTNODE_DEFINE_RK_STAGE(float)
FASTNODE_DEFINE_RK_STAGE(double)
FASTNODE_DEFINE_RK_STAGE(BFloat16)
FASTNODE_DEFINE_RK_STAGE(Half)
#undef FASTNODE_DEFINE_RK_STAGE

}  // namespace fastnode
