#include <algorithm>

#include "common/pack.h"
#include "kernels/rk/rk_error.h"
#include "kernels/rk/rk_rows.h"
#include "step_control/rk_control.h"

namespace fastnode {
namespace {

constexpr int kWarp = 32;
// Rows up to this long are summed by one warp or a part of it, longer ones in pieces of at least
// this, each by a block.
constexpr int64_t kShortRow = 1024;
constexpr int64_t kPiece = 2048;
constexpr int64_t kMaxPieces = 4096;

int64_t most_pieces(int64_t dim) { return std::min(kMaxPieces, (dim + kPiece - 1) / kPiece); }

int64_t piece_length(int64_t dim) {
  const int64_t pieces = most_pieces(dim), length = (dim + pieces - 1) / pieces;
  return (length + kPiece - 1) / kPiece * kPiece;
}

// What is measured: sum_j c_j k_j by the same tolerances everywhere, or h times it by those of a
// row.
template <class A>
struct Numbers {
  A h, rtol, atol;
};

template <class T, class K>
struct Joint {
  using Element = T;
  const T* y0;
  const T* y1;
  K terms;
  acc_t<T> rtol, atol;
  bool wide;  // every row starts at a multiple of 16 bytes
  __device__ Numbers<acc_t<T>> numbers(int64_t) const { return {1, rtol, atol}; }
};

template <class T>
struct ByRow {
  using Element = T;
  const T* y0;
  const T* y1;
  Terms<T> terms;
  const double* h;
  const double* rtol;
  const double* atol;
  bool wide;
  __device__ Numbers<acc_t<T>> numbers(int64_t row) const {
    using A = acc_t<T>;
    return {A(h[row]), A(rtol[row]), A(atol[row])};
  }
};

template <class A>
__device__ __forceinline__ A square_of_ratio(A error, A y0, A y1, const Numbers<A>& by) {
  const A ratio = over_tolerance(by.h * error, y0, y1, by.rtol, by.atol);
  return ratio * ratio;
}

// The squares of Size elements from i on.
template <int Size, class S, class W, class A>
__device__ __forceinline__ A squares_at(const S& step, W weights, const Numbers<A>& by, int64_t i) {
  using Elements = Items<Size, typename S::Element>;
  const auto y0 = Elements::read(step.y0, i), y1 = Elements::read(step.y1, i);
  Elements error{};
  error.add(step.terms.k, weights, step.terms.count, i);
  A squares = 0;
#pragma unroll
  for (int e = 0; e < Size; ++e) {
    squares += square_of_ratio(error.sum[e], A(load(y0.values[e])), A(load(y1.values[e])), by);
  }
  return squares;
}

// The squares of the elements [begin, end) of a row that fall to one of `lanes` threads.
template <class S, class W>
__device__ double lane_sum(const S& step, W weights, int64_t row, int64_t begin, int64_t end,
                           int lane, int lanes) {
  constexpr int kSize = kPack<typename S::Element>;
  const auto by = step.numbers(row);
  acc_t<typename S::Element> squares = 0;
  int64_t tail = begin;
  if (step.wide) {
    tail += (end - begin) / kSize * kSize;
    for (int64_t i = begin + lane * kSize; i < tail; i += lanes * kSize) {
      squares += squares_at<kSize>(step, weights, by, i);
    }
  }
  for (int64_t i = tail + lane; i < end; i += lanes) {
    squares += squares_at<1>(step, weights, by, i);
  }
  return double(squares);
}

template <class A>
__device__ __forceinline__ A root_mean(double sum, int64_t dim) {
  return A(sqrt(sum / double(dim > 0 ? dim : 1)));
}

// Over groups of `width` threads of a warp, in one order; the first of each group has the sum.
__device__ __forceinline__ double group_sum(double value, int width) {
  for (int offset = width / 2; offset > 0; offset /= 2) {
    value += __shfl_down_sync(0xFFFFFFFFu, value, offset, width);
  }
  return value;
}

// Over the block, in one order; thread 0 has the sum.
__device__ __forceinline__ double block_sum(double value) {
  __shared__ double of_warp[kThreads / kWarp];
  value = group_sum(value, kWarp);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < kThreads / kWarp; ++warp) value += of_warp[warp];
  }
  return value;
}

// `width` threads a row, a power of two up to a warp.
template <class S, class A>
__global__ void __launch_bounds__(kThreads, 3)
    short_rows_kernel(const __grid_constant__ S step, int64_t rows, int64_t dim, int width,
                      A* norm) {
  const auto weights = weights_of(step.terms);
  const int lane = threadIdx.x % width;
  const int64_t here = kThreads / width;
  // All threads of a warp take part in each sum, those past the last row with zeros.
  for (int64_t base = blockIdx.x * here; base < rows; base += gridDim.x * here) {
    const int64_t row = base + threadIdx.x / width;
    double sum =
        row < rows ? lane_sum(step, weights, row, row * dim, (row + 1) * dim, lane, width) : 0.0;
    sum = group_sum(sum, width);
    if (lane == 0 && row < rows) norm[row] = root_mean<A>(sum, dim);
  }
}

// One block a piece of a row. A row of one piece is finished at once.
template <class S, class A>
__global__ void __launch_bounds__(kThreads, 4)
    pieces_kernel(const __grid_constant__ S step, int64_t rows, int64_t dim, int64_t length,
                  int64_t pieces, double* partial, A* norm) {
  const auto weights = weights_of(step.terms);
  for (int64_t item = blockIdx.x; item < rows * pieces; item += gridDim.x) {
    const int64_t row = item / pieces, stop = (row + 1) * dim;
    const int64_t begin = row * dim + item % pieces * length;
    const int64_t end = begin + length < stop ? begin + length : stop;
    const double sum =
        block_sum(lane_sum(step, weights, row, begin, end, int(threadIdx.x), kThreads));
    if (threadIdx.x != 0) continue;
    if (pieces == 1) {
      norm[row] = root_mean<A>(sum, dim);
    } else {
      partial[item] = sum;
    }
  }
}

template <class A>
__global__ void __launch_bounds__(kThreads, 4)
    finish_kernel(const double* partial, int64_t rows, int64_t dim, int64_t pieces, A* norm) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    double sum = 0;
    for (int64_t i = threadIdx.x; i < pieces; i += kThreads) sum += partial[row * pieces + i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) norm[row] = root_mean<A>(sum, dim);
  }
}

template <class S, class A>
int launch(S step, int64_t rows, int64_t dim, A* norm, double* partial, void* cuda_stream) {
  constexpr int kSize = kPack<typename S::Element>;
  if (rows == 0) return cudaSuccess;
  const cudaStream_t stream = static_cast<cudaStream_t>(cuda_stream);
  step.wide = aligned(step.y0) && aligned(step.y1) && all_aligned(step.terms) &&
              (rows == 1 || dim % kSize == 0);
  if (dim <= kShortRow) {
    const int64_t items = step.wide ? (dim + kSize - 1) / kSize : dim;
    int width = 1;
    while (width < kWarp && width < items) width *= 2;
    short_rows_kernel<<<blocks_for(rows * width), kThreads, 0, stream>>>(step, rows, dim, width,
                                                                         norm);
    return cudaGetLastError();
  }
  const int64_t length = piece_length(dim), pieces = (dim + length - 1) / length;
  pieces_kernel<<<int(std::min(rows * pieces, kMaxBlocks)), kThreads, 0, stream>>>(
      step, rows, dim, length, pieces, partial, norm);
  const int error = cudaGetLastError();
  if (error != cudaSuccess || pieces == 1) return error;
  finish_kernel<<<int(std::min(rows, kMaxBlocks)), kThreads, 0, stream>>>(partial, rows, dim,
                                                                          pieces, norm);
  return cudaGetLastError();
}

}  // namespace

// Not the pieces themselves: beyond kMaxPieces those become longer, so that a longer row can have
// fewer of them.
int64_t rk_error_cuda_partials(int64_t rows, int64_t dim) {
  const int64_t most = most_pieces(dim);
  return most <= 1 ? 0 : rows * most;
}

#define FASTNODE_DEFINE_RK_ERROR(T)                                                                \
  int rk_error_cuda(const T* y0, const T* y1, const Terms<T>& terms, acc_t<T> rtol, acc_t<T> atol, \
                    int64_t rows, int64_t dim, acc_t<T>* norm, double* partial,                    \
                    void* cuda_stream) {                                                           \
    return launch(Joint<T, Terms<T>>{y0, y1, terms, rtol, atol, false}, rows, dim, norm, partial,  \
                  cuda_stream);                                                                    \
  }                                                                                                \
  int rk_step_error_cuda(const T* y0, const T* y1, const StepTerms<T>& terms, acc_t<T> rtol,       \
                         acc_t<T> atol, int64_t numel, acc_t<T>* norm, double* partial,            \
                         void* cuda_stream) {                                                      \
    return launch(Joint<T, StepTerms<T>>{y0, y1, terms, rtol, atol, false}, 1, numel, norm,        \
                  partial, cuda_stream);                                                           \
  }                                                                                                \
  int rk_error_rows_cuda(const T* y0, const T* y1, const Terms<T>& terms, const double* h,         \
                         const double* rtol, const double* atol, int64_t rows, int64_t dim,        \
                         acc_t<T>* norm, double* partial, void* cuda_stream) {                     \
    return launch(ByRow<T>{y0, y1, terms, h, rtol, atol, false}, rows, dim, norm, partial,         \
                  cuda_stream);                                                                    \
  }
FASTNODE_DEFINE_RK_ERROR(float)
FASTNODE_DEFINE_RK_ERROR(double)
FASTNODE_DEFINE_RK_ERROR(BFloat16)
FASTNODE_DEFINE_RK_ERROR(Half)
#undef FASTNODE_DEFINE_RK_ERROR

}  // namespace fastnode
