// What the CUDA kernels share: 16-byte packs, sums of stages over one, sizes of launches.
#pragma once

#include <cuda_runtime.h>

#include "kernels/terms.h"

namespace fastnode {

constexpr int kThreads = 256;
// Enough blocks to fill the largest device several times over; loops take the rest.
constexpr int64_t kMaxBlocks = 4096;

// 16 bytes: the widest access of a thread.
template <class T>
struct alignas(16) Pack {
  static constexpr int kSize = 16 / sizeof(T);
  T values[kSize];
};

template <class T>
__device__ __forceinline__ Pack<T> load_pack(const T* from, int64_t p) {
  return reinterpret_cast<const Pack<T>*>(from)[p];
}

// The weights of a launch, for all threads of a block: its arguments, or made from the step.
template <class T>
__device__ __forceinline__ const acc_t<T>* weights_of(const Terms<T>& terms) {
  return terms.c;
}

template <class T>
__device__ __forceinline__ const acc_t<T>* weights_of(const StepTerms<T>& terms) {
  __shared__ acc_t<T> c[kMaxTerms];
  const int j = threadIdx.x;
  if (j < terms.count) c[j] = acc_t<T>(*terms.h * terms.w[j]);
  __syncthreads();
  return c;
}

// sum += sum_j c_j k_j over pack p.
template <class T>
__device__ __forceinline__ void add_packs(acc_t<T> (&sum)[Pack<T>::kSize], const T* const* k,
                                          const acc_t<T>* c, int count, int64_t p) {
#pragma unroll 4
  for (int j = 0; j < count; ++j) {
    const Pack<T> slope = load_pack(k[j], p);
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; ++i) {
      sum[i] = add_term(sum[i], c[j], acc_t<T>(load(slope.values[i])));
    }
  }
}

// sum + sum_j c_j k_j at element i.
template <class T>
__device__ __forceinline__ acc_t<T> add_elements(acc_t<T> sum, const T* const* k, const acc_t<T>* c,
                                                 int count, int64_t i) {
#pragma unroll 4
  for (int j = 0; j < count; ++j) sum = add_term(sum, c[j], acc_t<T>(load(k[j][i])));
  return sum;
}

// Sums at Size elements from `first` on, a pack of them or one.
template <int Size, class T>
struct Items {
  struct alignas(Size * sizeof(T)) Values {
    T values[Size];
  };
  using A = acc_t<T>;
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
  __device__ __forceinline__ void add(A c, const T* k, int64_t first) {
    const Values slope = read(k, first);
#pragma unroll
    for (int i = 0; i < Size; ++i) sum[i] = add_term(sum[i], c, A(load(slope.values[i])));
  }
  __device__ __forceinline__ void write(T* out, int64_t first) const {
    Values result;
#pragma unroll
    for (int i = 0; i < Size; ++i) result.values[i] = store<T>(sum[i]);
    put(out, first, result);
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
