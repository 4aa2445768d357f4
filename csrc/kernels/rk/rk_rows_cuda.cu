#include "common/pack.h"
#include "kernels/rk/rk_rows.h"

namespace fastnode {
namespace {

// Every row starts at a multiple of Size.
template <int Size, class T>
__global__ void __launch_bounds__(kThreads, kResident)
    rk_stage_rows_kernel(const T* __restrict__ y, const __grid_constant__ Terms<T> terms,
                         const double* __restrict__ h, int64_t numel, int64_t dim,
                         T* __restrict__ out) {
  using A = acc_t<T>;
  const int64_t stride = int64_t(gridDim.x) * kThreads * Size;
  for (int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * Size; i < numel; i += stride) {
    Items<Size, T> items{};
    items.add(terms.k, weights_of(terms), terms.count, i);
    const auto state = items.read(y, i);
    const A step = A(h[i / dim]);
#pragma unroll
    for (int e = 0; e < Size; ++e) {
      items.sum[e] = add_term(A(load(state.values[e])), step, items.sum[e]);
    }
    items.write(out, i);
  }
}

template <int Size, class T>
__global__ void __launch_bounds__(kThreads, kResident)
    rk_dense_rows_kernel(const T* __restrict__ y, const __grid_constant__ Terms<T> terms,
                         const double* __restrict__ w, int64_t numel, int64_t dim,
                         T* __restrict__ out) {
  using A = acc_t<T>;
  const int64_t stride = int64_t(gridDim.x) * kThreads * Size;
  for (int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * Size; i < numel; i += stride) {
    const double* weights = w + i / dim * terms.count;
    Items<Size, T> items{};
    const auto state = items.read(y, i);
    items.add(terms.k, [&](int j) { return A(weights[j]); }, terms.count, i);
    items.add_to(state);
    items.write(out, i);
  }
}

// Launches f(size) with a compile-time number of elements a thread.
template <class T, class F>
int launch(const T* y, const Terms<T>& terms, int64_t rows, int64_t dim, const T* out, F&& f) {
  constexpr int kSize = kPack<T>;
  const int64_t numel = rows * dim;
  if (numel == 0) return cudaSuccess;
  if (dim % kSize == 0 && aligned(y) && aligned(out) && all_aligned(terms)) {
    f(std::integral_constant<int, kSize>(), blocks_for(numel / kSize));
  } else {
    f(std::integral_constant<int, 1>(), blocks_for(numel));
  }
  return cudaGetLastError();
}

}  // namespace

#define FASTNODE_DEFINE_RK_ROWS(T)                                                                 \
  int rk_stage_rows_cuda(const T* y, const Terms<T>& terms, const double* h, int64_t rows,         \
                         int64_t dim, T* out, void* cuda_stream) {                                 \
    return launch(y, terms, rows, dim, out, [&](auto size, int blocks) {                           \
      rk_stage_rows_kernel<size()>                                                                 \
          <<<blocks, kThreads, 0, static_cast<cudaStream_t>(cuda_stream)>>>(y, terms, h,           \
                                                                            rows * dim, dim, out); \
    });                                                                                            \
  }                                                                                                \
  int rk_dense_rows_cuda(const T* y, const Terms<T>& terms, const double* w, int64_t rows,         \
                         int64_t dim, T* out, void* cuda_stream) {                                 \
    return launch(y, terms, rows, dim, out, [&](auto size, int blocks) {                           \
      rk_dense_rows_kernel<size()>                                                                 \
          <<<blocks, kThreads, 0, static_cast<cudaStream_t>(cuda_stream)>>>(y, terms, w,           \
                                                                            rows * dim, dim, out); \
    });                                                                                            \
  }
FASTNODE_DEFINE_RK_ROWS(float)
FASTNODE_DEFINE_RK_ROWS(double)
FASTNODE_DEFINE_RK_ROWS(BFloat16)
FASTNODE_DEFINE_RK_ROWS(Half)
#undef FASTNODE_DEFINE_RK_ROWS

}  // namespace fastnode
