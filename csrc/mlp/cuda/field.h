// A block of threads and the field on the samples that it holds.
#pragma once

#include "mlp/cuda/activation.h"
#include "mlp/cuda/tensor_core_layers.h"

namespace fastnode {

// The field, on the numbers of one thread's sample. `Recording`, it leaves the derivatives of
// activations at `slopes`, laid as the activations. `Far`: see side_at.
template <class T, bool Alone, bool Far, bool Recording = false>
struct MlpEvaluation {
  const T* const weights;
  T* const parts;
  const int samples, groups, s, g;
  const Activation activation;
  const T time;
  T* slopes = nullptr;

  __device__ int place(int feature) const { return feature * samples + s; }
  __device__ void meet() const {
    if constexpr (!Alone) __syncthreads();
  }

  // As many outputs for each thread as keep all of them busy: four multiplications for two accesses
  // to shared memory, or two, or one.
  __device__ void multiply(const DeviceLayer<T>& layer, const T* x, T* to, bool last) const {
    if constexpr (!Alone) {
      if (tensor_pays<T>(layer.out, layer.in, samples)) {
        return tiles(layer, x, to, last);
      }
    }
    if (Alone || layer.out >= 4 * groups) return rows<4>(layer, x, to, last);
    if (layer.out >= 2 * groups) return rows<2>(layer, x, to, last);
    if (2 * layer.out <= groups && layer.in >= 16) return shared_sums(layer, x, to, last);
    rows<1>(layer, x, to, last);
  }

  template <int Count>
  __device__ void rows(const DeviceLayer<T>& layer, const T* x, T* to, bool last) const {
    const int blocks = (layer.out + Count - 1) / Count;
    for (int b = g; b < blocks; b += groups) {
      T sum[Count];
#pragma unroll
      for (int r = 0; r < Count; ++r) sum[r] = constant(layer, b * Count + r);
      add<Count>(layer, b * Count, 0, layer.in, x, sum);
      put<Count>(layer, b * Count, sum, to, last);
    }
  }

  __device__ void tiles(const DeviceLayer<T>& layer, const T* x, T* to, bool last) const {
    tensor_outputs<T, Far>(place_of(&layer), place_of(x), place_of(to));
    meet();
    for (int out = g; out < layer.out; out += groups) {
      T sum[1] = {to[place(out)] + constant(layer, out)};
      put<1>(layer, out, sum, to, last);
    }
  }

  template <int Count>
  __device__ void put(const DeviceLayer<T>& layer, int out, T* sum, T* to, bool last) const {
    T before[Count];
#pragma unroll
    for (int r = 0; r < Count; ++r) before[r] = sum[r];
    if (!last) activate<Count>(activation, sum);
#pragma unroll
    for (int r = 0; r < Count; ++r) {
      if (out + r >= layer.out) continue;
      to[place(out + r)] = sum[r];
      if constexpr (Recording) {
        slopes[place(out + r)] = derivative(activation, before[r], sum[r]);
      }
    }
  }

  // Few outputs of many inputs: several threads for each, whose sums are added in their order.
  __device__ void shared_sums(const DeviceLayer<T>& layer, const T* x, T* to, bool last) const {
    const int most = groups / layer.out, enough = layer.in / 8;
    const int count = most < enough ? most : enough;
    const int out = g % layer.out, part = g / layer.out;
    if (part < count) {
      T sum[1] = {0};
      add<1>(layer, out, layer.in * part / count, layer.in * (part + 1) / count, x, sum);
      parts[place(g)] = sum[0];
    }
    meet();
    if (g >= layer.out) return;
    T sum[1] = {constant(layer, g)};
    for (int i = 0; i < count; ++i) sum[0] += parts[place(i * layer.out + g)];
    put<1>(layer, g, sum, to, last);
  }

  __device__ T constant(const DeviceLayer<T>& layer, int out) const {
    const int rows = padded_rows(layer);
    const T* const bias = weights + layer.at + rows * padded_inputs(layer);
    const T alone = side_at<Far, 1>(bias + out).of[0];
    return layer.time_column < 0 ? alone : alone + side_at<Far, 1>(bias + rows + out).of[0] * time;
  }

  template <int Count>
  __device__ void add(const DeviceLayer<T>& layer, int out, int begin, int end, const T* x,
                      T* sum) const {
    const T* w = weights + layer.at + out % kRows;
    w += ((out / kRows) * padded_inputs(layer) + begin) * kRows;
    x += place(begin);
#pragma unroll(Far ? kSidesAhead<Count, T> : 4)
    for (int i = begin; i < end; ++i, w += kRows, x += samples) {
      const Side<Count, T> side = side_at<Far, Count>(w);
      const T number = *x;
#pragma unroll
      for (int r = 0; r < Count; ++r) sum[r] += side.of[r] * number;
    }
  }
};

// A function of its own, as half a dozen copies of all activations would be in each kernel; it is
// told places, not pointers, so that it knows that what it reads is shared memory. Who calls has
// met since x was written; all have met when it returns.
template <class T, bool Alone, bool Far>
__device__ __noinline__ void mlp_evaluate(T time, int x, int out) {
  const MlpTable<T>& table = *at_place<const MlpTable<T>>(0);
  const auto at = [](int place) { return at_place<T>(place); };
  const int thread = int(threadIdx.x);
  const MlpEvaluation<T, Alone, Far> evaluation{weights_by<Far>(at(table.weights)),
                                                at(table.parts),
                                                table.samples,
                                                Alone ? 1 : table.groups,
                                                Alone ? thread : thread % table.samples,
                                                Alone ? 0 : thread / table.samples,
                                                table.field.activation,
                                                time};
  for (int l = 0; l < table.field.count; ++l) {
    const bool last = l + 1 == table.field.count;
    const int to = last ? out : l % 2 ? table.second : table.first;
    evaluation.multiply(table.field.layers[l], at(x), at(to), last);
    x = to;
    evaluation.meet();
  }
}

}  // namespace fastnode
