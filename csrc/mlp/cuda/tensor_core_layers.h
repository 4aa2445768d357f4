// Layers of a perceptron by tensor cores, on all samples of a block and by all of its threads. Each
// a function that is not inlined and takes offsets, as mlp_evaluate.
#pragma once

#include "mlp/cuda/shared_memory.h"
#include "mlp/cuda/tensor_core.h"
#include "mlp/cuda/weights.h"

namespace fastnode {

// Whether tensor cores may be used, and at least half of the warps have a tile. A guess: no GPU has
// measured it.
template <class T>
__device__ __forceinline__ bool tensor_pays(int rows, int depth, int columns) {
  const MlpTable<T>& table = *at_offset<const MlpTable<T>>(0);
  const int tiles = rows / (8 * TensorTile<T>::kTall) * (columns / 8);
  return table.tensor && depth >= 8 && 64 * tiles >= table.samples * table.groups;
}

// Steps of a product whose weights are loaded before the first is done: see kSidesAhead.
template <bool Far>
constexpr int kStepsAhead = Far ? 2 : 1;

// to [out, samples] = W x. A tile is of several samples, whose times their threads alone know: what
// else belongs to the layer is left to these.
template <class T, bool Far>
__device__ __noinline__ void tensor_outputs(int layer_offset, int x_offset, int to_offset) {
  const MlpTable<T>& table = *at_offset<const MlpTable<T>>(0);
  const DeviceLayer<T>& layer = *at_offset<const DeviceLayer<T>>(layer_offset);
  const T* const weights = weights_by<Far>(at_offset<const T>(table.weights));
  const T* const x = at_offset<const T>(x_offset);
  T* const to = at_offset<T>(to_offset);
  const int samples = table.samples;
  tensor_product<T, kStepsAhead<Far>>(
      layer.out, layer.in, samples, samples * table.groups,
      [&](int out, int in) {
        return side_at<Far, 1>(weights + weight_index(layer, out, in)).of[0];
      },
      [&](int in, int sample) { return x[in * samples + sample]; },
      [&](int out, int sample, T sum) { to[out * samples + sample] = sum; });
}

// to [in, samples] = W^T g, times what is there if it is to be `scaled`.
template <class T, bool Far>
__device__ __noinline__ void tensor_inputs(int layer_offset, int g_offset, int to_offset,
                                           bool scaled) {
  const MlpTable<T>& table = *at_offset<const MlpTable<T>>(0);
  const DeviceLayer<T>& layer = *at_offset<const DeviceLayer<T>>(layer_offset);
  const T* const weights = weights_by<Far>(at_offset<const T>(table.weights));
  const T* const g = at_offset<const T>(g_offset);
  T* const to = at_offset<T>(to_offset);
  const int samples = table.samples;
  tensor_product<T, kStepsAhead<Far>>(
      layer.in, layer.out, samples, samples * table.groups,
      [&](int in, int out) {
        return side_at<Far, 1>(weights + weight_index(layer, out, in)).of[0];
      },
      [&](int out, int sample) { return g[out * samples + sample]; },
      [&](int in, int sample, T sum) {
        const int i = in * samples + sample;
        to[i] = scaled ? to[i] * sum : sum;
      });
}

// Where the gradient of a weight is among those of its layer.
template <class T>
__device__ int64_t gradient_index(const DeviceLayer<T>& layer, int out, int in) {
  const int column = layer.time_column, width = layer.in + (column >= 0);
  return int64_t(out) * width + (column < 0 || in < column ? in : in + 1);
}

// Adds g x^T to the gradient of the layer's weight.
template <class T>
__device__ __noinline__ void tensor_gradient(int layer_offset, int g_offset, int x_offset, T* to) {
  const MlpTable<T>& table = *at_offset<const MlpTable<T>>(0);
  const DeviceLayer<T>& layer = *at_offset<const DeviceLayer<T>>(layer_offset);
  const T *const g = at_offset<const T>(g_offset), *const x = at_offset<const T>(x_offset);
  const int samples = table.samples;
  tensor_product<T, 1>(
      layer.out, samples, layer.in, samples * table.groups,
      [&](int out, int sample) { return g[out * samples + sample]; },
      [&](int sample, int in) { return x[in * samples + sample]; },
      [&](int out, int in, T sum) { to[gradient_index(layer, out, in)] += sum; });
}

}  // namespace fastnode
