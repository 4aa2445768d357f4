#include <algorithm>

#include "common/pack.h"
#include "kernels/rk/rk_dense.h"

namespace fastnode {
namespace {

// Rows that a thread makes at once: each element of a stage it reads serves all of them.
constexpr int kRows = 4;

// The weights of one launch travel as its argument: no copy to the device and no wait for one,
// so that a CUDA graph can hold the launch. 2 KiB, with the stages well below the 4 KiB allowed.
template <class A>
struct Weights {
  static constexpr int kSize = 2048 / sizeof(A);
  A values[kSize];
};

// out[row + r] for r < kRows, of which those from `rows` on are not stored. Size elements from
// `first` on: a pack of them, or one.
template <int Size, class T>
__device__ __forceinline__ void dense_rows(const T* y, const Terms<T>& terms,
                                           const Weights<acc_t<T>>& weights, int row, int rows,
                                           int64_t out_stride, int64_t first, T* out) {
  using A = acc_t<T>;
  struct alignas(Size * sizeof(T)) Items {
    T values[Size];
  };
  const auto items = [&](const T* from) { return *reinterpret_cast<const Items*>(from + first); };
  A sum[kRows][Size] = {};
  const Items state = items(y);
#pragma unroll 2
  for (int j = 0; j < terms.count; ++j) {
    const Items k = items(terms.k[j]);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      // A row too many repeats the last one.
      const A c = weights.values[min(row + r, rows - 1) * terms.count + j];
#pragma unroll
      for (int i = 0; i < Size; ++i) sum[r][i] = add_term(sum[r][i], c, A(load(k.values[i])));
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (row + r >= rows) break;
    Items result;
#pragma unroll
    for (int i = 0; i < Size; ++i) {
      result.values[i] = store<T>(load(state.values[i]) + sum[r][i]);
    }
    *reinterpret_cast<Items*>(out + (row + r) * out_stride + first) = result;
  }
}

// The first `packs` packs of each row by wide access, the rest element by element.
template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    rk_dense_kernel(const T* __restrict__ y, Terms<T> terms, Weights<acc_t<T>> weights, int rows,
                    int64_t out_stride, int64_t packs, int64_t numel, T* __restrict__ out) {
  constexpr int kSize = kPack<T>;
  const int64_t first = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t stride = int64_t(gridDim.x) * kThreads;
  for (int64_t p = first; p < packs; p += stride) {
    for (int row = 0; row < rows; row += kRows) {
      dense_rows<kSize>(y, terms, weights, row, rows, out_stride, p * kSize, out);
    }
  }
  for (int64_t i = packs * kSize + first; i < numel; i += stride) {
    for (int row = 0; row < rows; row += kRows) {
      dense_rows<1>(y, terms, weights, row, rows, out_stride, i, out);
    }
  }
}

template <class T>
int launch(const T* y, const Terms<T>& terms, const acc_t<T>* c, int64_t m, int64_t numel, T* out,
           void* cuda_stream) {
  using A = acc_t<T>;
  if (numel == 0) return cudaSuccess;
  const bool rows_aligned = m == 1 || numel % kPack<T> == 0;
  const bool wide = rows_aligned && aligned(y) && aligned(out) && all_aligned(terms);
  const int64_t packs = wide ? numel / kPack<T> : 0;
  const int blocks = blocks_for(packs > 0 ? packs : numel);
  const int64_t rows_at_once = Weights<A>::kSize / std::max(1, terms.count);
  for (int64_t row = 0; row < m; row += rows_at_once) {
    const int rows = int(std::min(rows_at_once, m - row));
    Weights<A> weights;
    std::copy_n(c + row * terms.count, rows * terms.count, weights.values);
    rk_dense_kernel<T><<<blocks, kThreads, 0, static_cast<cudaStream_t>(cuda_stream)>>>(
        y, terms, weights, rows, numel, packs, numel, out + row * numel);
    const int error = cudaGetLastError();
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace

#define FASTNODE_DEFINE_RK_DENSE(T)                                                  \
  int rk_dense_cuda(const T* y, const Terms<T>& terms, const acc_t<T>* c, int64_t m, \
                    int64_t numel, T* out, void* cuda_stream) {                      \
    return launch(y, terms, c, m, numel, out, cuda_stream);                          \
  }
FASTNODE_DEFINE_RK_DENSE(float)
FASTNODE_DEFINE_RK_DENSE(double)
FASTNODE_DEFINE_RK_DENSE(BFloat16)
FASTNODE_DEFINE_RK_DENSE(Half)
#undef FASTNODE_DEFINE_RK_DENSE

}  // namespace fastnode
