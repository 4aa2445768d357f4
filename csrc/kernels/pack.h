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

// sum += sum_j c_j k_j over pack p.
template <class T>
__device__ __forceinline__ void add_packs(acc_t<T> (&sum)[Pack<T>::kSize], const Terms<T>& terms,
                                          int64_t p) {
#pragma unroll 4
  for (int j = 0; j < terms.count; ++j) {
    const Pack<T> k = load_pack(terms.k[j], p);
#pragma unroll
    for (int i = 0; i < Pack<T>::kSize; ++i) {
      sum[i] = add_term(sum[i], terms.c[j], load(k.values[i]));
    }
  }
}

// sum + sum_j c_j k_j at element i.
template <class T>
__device__ __forceinline__ acc_t<T> add_elements(acc_t<T> sum, const Terms<T>& terms, int64_t i) {
#pragma unroll 4
  for (int j = 0; j < terms.count; ++j) sum = add_term(sum, terms.c[j], load(terms.k[j][i]));
  return sum;
}

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <class T>
bool all_aligned(const Terms<T>& terms) {
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
