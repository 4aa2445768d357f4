// What the CUDA kernels share: 16-byte packs, sums of stages over one, sizes of launches.
#pragma once

#include <cuda_runtime.h>

#include "common/terms.h"

namespace fastnode {

constexpr int kThreads = 256;
// Resident blocks on a multiprocessor. Without a limit the compiler aims at eight, and waits for
// each load before the next or spills registers; with five every thread has four loads of 16 bytes
// in flight, by estimate several times what hides the latency of memory.
constexpr int kResident = 5;
// Enough blocks to fill the largest device several times over; loops take the rest.
constexpr int64_t kMaxBlocks = 4096;

// Elements in 16 bytes, the widest access of a thread.
template <class T>
constexpr int kPack = 16 / sizeof(T);

// The weight of stage j, for all threads of a block: an argument of the launch, or made from the
// step.
template <class A>
struct WeightsAt {
  const A* c;
  __device__ __forceinline__ A operator()(int j) const { return c[j]; }
};

template <class T>
__device__ __forceinline__ WeightsAt<acc_t<T>> weights_of(const Terms<T>& terms) {
  return {terms.c};
}

template <class T>
__device__ __forceinline__ WeightsAt<acc_t<T>> weights_of(const StepTerms<T>& terms) {
  __shared__ acc_t<T> c[kMaxTerms];
  const int j = threadIdx.x;
  if (j < terms.count) c[j] = acc_t<T>(*terms.h * terms.w[j]);
  __syncthreads();
  return {c};
}

// Sums at Size elements from `first` on, a pack of them or one.
template <int Size, class T>
struct Items {
  using A = acc_t<T>;
  struct alignas(Size * sizeof(T)) Values {
    T values[Size];
  };
  A sum[Size];

  __device__ __forceinline__ static Values read(const T* from, int64_t first) {
    return *reinterpret_cast<const Values*>(from + first);
  }
  __device__ __forceinline__ static void put(T* to, int64_t first, const Values& values) {
    *reinterpret_cast<Values*>(to + first) = values;
  }

  __device__ __forceinline__ void set(const T* from, int64_t first) {
    const Values values = read(from, first);
#pragma unroll
    for (int i = 0; i < Size; ++i) sum[i] = load(values.values[i]);
  }

  // sum += sum_j weight(j) k_j, in the order of j.
  template <class W>
  __device__ __forceinline__ void add(const T* const* k, W weight, int count, int64_t first) {
    int j = 0;
    for (; j + 4 <= count; j += 4) add_group<4>(k + j, weight, j, first);
    if (count - j == 3) add_group<3>(k + j, weight, j, first);
    if (count - j == 2) add_group<2>(k + j, weight, j, first);
    if (count - j == 1) add_group<1>(k + j, weight, j, first);
  }

  // sum = y + sum
  __device__ __forceinline__ void add_to(const Values& y) {
#pragma unroll
    for (int i = 0; i < Size; ++i) sum[i] = load(y.values[i]) + sum[i];
  }

  __device__ __forceinline__ void write(T* out, int64_t first) const {
    Values result;
#pragma unroll
    for (int i = 0; i < Size; ++i) result.values[i] = store<T>(sum[i]);
    put(out, first, result);
  }

 private:
  // All loads are in flight before the first is needed.
  template <int Group, class W>
  __device__ __forceinline__ void add_group(const T* const* k, W weight, int j, int64_t first) {
    Values derivatives[Group];
#pragma unroll
    for (int g = 0; g < Group; ++g) derivatives[g] = read(k[g], first);
#pragma unroll
    for (int g = 0; g < Group; ++g) {
      const A c = weight(j + g);
#pragma unroll
      for (int i = 0; i < Size; ++i)
        sum[i] = add_term(sum[i], c, A(load(derivatives[g].values[i])));
    }
  }
};

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <class K>
bool all_aligned(const K& terms) {
  bool all = true;
  for (int j = 0; j < terms.count; ++j) all = all && aligned(terms.k[j]);
  return all;
}

// Blocks of kThreads for so many items, one a thread.
inline int blocks_for(int64_t items) {
  const int64_t wanted = (items + kThreads - 1) / kThreads;
  return int(wanted < kMaxBlocks ? wanted : kMaxBlocks);
}

}  // namespace fastnode
