// The packed weights of a perceptron: how they are written, and read in pieces.
//
// They are in the shared memory of each block or, where they do not fit, once in global memory,
// where all blocks read them: a few megabytes, which the L2 cache holds.
#pragma once

#include <cuda_runtime.h>

#include <cstring>
#include <type_traits>

#include "mlp/cuda/block_memory.h"

namespace fastnode {

// Of a layer, to `numbers` + layer.at: for each kRows outputs [in, kRows]; then all biases and the
// weights of the time. By thread `first` of `count`.
template <class T>
__device__ inline void pack_layer(const DeviceLayer<T>& layer, T* numbers, int first, int count) {
  const int rows = padded_rows(layer);
  const int column = layer.time_column, width = layer.in + (column >= 0);
  T* const bias = numbers + layer.at + rows * padded_inputs(layer);
  for (int i = first; i < rows * layer.in; i += count) {
    const int out = i / layer.in, in = i % layer.in;
    const int from = column < 0 || in < column ? in : in + 1;
    numbers[weight_index(layer, out, in)] =
        out < layer.out ? layer.weight[int64_t(out) * width + from] : T(0);
  }
  for (int i = first; i < rows; i += count) {
    const bool real = i < layer.out;
    bias[i] = real && layer.bias != nullptr ? layer.bias[i] : T(0);
    bias[rows + i] = real && column >= 0 ? layer.weight[int64_t(i) * width + column] : T(0);
  }
}

template <int Count, class T>
struct alignas(Count * sizeof(T) < 16 ? Count * sizeof(T) : 16) Side {
  T of[Count];
};

// Where the weights are, by what a block has of them.
template <bool Far, class T>
__device__ __forceinline__ const T* weights_by(const T* here) {
  if constexpr (Far) {
    return *reinterpret_cast<const T* const*>(here);
  } else {
    return here;
  }
}

// Weights side by side, from shared memory or, `Far`, from device memory by the read-only cache.
template <bool Far, int Count, class T>
__device__ __forceinline__ Side<Count, T> side_at(const T* weights) {
  using Whole = Side<Count, T>;
  if constexpr (!Far) {
    return *reinterpret_cast<const Whole*>(weights);
  } else {
    using Short = std::conditional_t<sizeof(Whole) == 8, uint2, unsigned>;
    using Word = std::conditional_t<sizeof(Whole) % 16 == 0, uint4, Short>;
    constexpr int kWords = int(sizeof(Whole) / sizeof(Word));
    Word words[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = __ldg(reinterpret_cast<const Word*>(weights) + i);
    Whole side;
    memcpy(&side, words, sizeof(side));
    return side;
  }
}

// Loads from global memory that a thread issues before it waits for the first. An estimate, which
// no GPU has timed: the L2 cache answers after some 250 cycles, shared memory after some 30; a
// processor has 8 to 16 warps of such a solve to fill them with, each with a few multiplications
// for a side, so that one side at a time would leave it idle for most of them. Eight reads of 16
// bytes take 32 registers.
template <int Count, class T>
constexpr int kSidesAhead = sizeof(Side<Count, T>) > 16 ? 4 : 8;

}  // namespace fastnode
