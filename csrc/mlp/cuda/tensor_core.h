// Matrix products by tensor cores, in tiles that the lanes of a warp share.
//
// float64: fused multiplications and additions, as those of a thread, in another order. float32: a
// tensor core takes factors of 11 bits, so each number is split into one of these and the rest,
// rounded to another, and three products are added, all but that of both rests: some 22 bits of
// float32's 24. Sums of what is small are kept apart until the end.
#pragma once

#include <cuda_runtime.h>

namespace fastnode {

// A tile is 8 kTall rows by 8 columns, and its factors 4 kDeep deep. With group = lane / 4 and
// member = lane % 4 a lane has, of the left factor, row group + 8 i at depth member + 4 j in place
// j kTall + i, of the right one column group at that depth, and of the sum columns 2 member and
// 2 member + 1 of row group + 8 i (PTX ISA, matrix fragments of mma.m8n8k4 with .f64 and of
// mma.m16n8k8 with .tf32).
template <class T>
struct TensorTile;

#if !defined(__CUDACC__)
using emulation::add_tile;
using emulation::tensor_rounded;
#else
__device__ __forceinline__ void add_tile(double* sum, const double* left, const double* right) {
#if __CUDA_ARCH__ >= 800
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+d"(sum[0]), "+d"(sum[1])
               : "d"(left[0]), "d"(right[0]));
#else
  __trap();
#endif
}

// Of numbers that are tensor_rounded.
__device__ __forceinline__ void add_tile(float* sum, const float* left, const float* right) {
#if __CUDA_ARCH__ >= 800
  const auto bits = [](float x) { return __float_as_uint(x); };
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(bits(left[0])), "r"(bits(left[1])), "r"(bits(left[2])), "r"(bits(left[3])),
        "r"(bits(right[0])), "r"(bits(right[1])));
#else
  __trap();
#endif
}

// To 11 bits.
__device__ __forceinline__ float tensor_rounded(float x) {
#if __CUDA_ARCH__ >= 800
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
#else
  __trap();
  return x;
#endif
}
#endif

template <>
struct TensorTile<double> {
  static constexpr int kTall = 1, kDeep = 1;
  double sum[2] = {};

  __device__ void add(const double* left, const double* right) { add_tile(sum, left, right); }
  __device__ double total(int i) const { return sum[i]; }
};

template <>
struct TensorTile<float> {
  static constexpr int kTall = 2, kDeep = 2;
  float sum[4] = {}, small[4] = {};

  template <int Count>
  struct Split {
    float of[Count], rest[Count];

    __device__ explicit Split(const float* numbers) {
#pragma unroll
      for (int i = 0; i < Count; ++i) {
        of[i] = tensor_rounded(numbers[i]);
        const float left = numbers[i] - of[i];
        // The rest of an infinity is NaN.
        rest[i] = left == left ? tensor_rounded(left) : 0.0f;
      }
    }
  };

  __device__ void add(const float* left, const float* right) {
    const Split<4> a(left);
    const Split<2> b(right);
    add_tile(small, a.rest, b.of);
    add_tile(small, a.of, b.rest);
    add_tile(sum, a.of, b.of);
  }
  __device__ float total(int i) const { return sum[i] + small[i]; }
};

// put(row, column, sum) for all elements of a product of left [rows, depth] and right
// [depth, columns], by all warps of a block of `threads`; an element is always the same thread's.
// left(row, k) and right(k, column) are asked for what there is alone, more than once at the edges.
template <class T, int Ahead, class Left, class Right, class Put>
__device__ __forceinline__ void tensor_product(int rows, int depth, int columns, int threads,
                                               Left left, Right right, Put put) {
  using Tile = TensorTile<T>;
  constexpr int kTall = Tile::kTall, kDeep = Tile::kDeep;
  const int lane = int(threadIdx.x) % 32, group = lane / 4, member = lane % 4;
  const int across = (columns + 7) / 8, tiles = (rows + 8 * kTall - 1) / (8 * kTall) * across;
  for (int t = int(threadIdx.x) / 32; t < tiles; t += threads / 32) {
    const int top = t / across * 8 * kTall, begin = t % across * 8;
    const int column = begin + group < columns ? begin + group : columns - 1;
    int row[kTall];
#pragma unroll
    for (int i = 0; i < kTall; ++i) row[i] = min(top + group + 8 * i, rows - 1);
    Tile tile;
#pragma unroll(Ahead)
    for (int start = 0; start < depth; start += 4 * kDeep) {
      const int k = start + member;
      T a[kTall * kDeep], b[kDeep];
#pragma unroll
      for (int j = 0; j < kDeep; ++j) {
        const bool inside = k + 4 * j < depth;
        b[j] = inside ? right(k + 4 * j, column) : T(0);
#pragma unroll
        for (int i = 0; i < kTall; ++i) {
          a[j * kTall + i] = inside ? left(row[i], k + 4 * j) : T(0);
        }
      }
      tile.add(a, b);
    }
#pragma unroll
    for (int i = 0; i < 2 * kTall; ++i) {
      const int m = top + group + i / 2 * 8, n = begin + 2 * member + i % 2;
      if (m < rows && n < columns) put(m, n, tile.total(i));
    }
  }
}

}  // namespace fastnode
