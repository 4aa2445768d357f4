// A block of threads and the field on the samples that it holds.
#pragma once

#include "mlp/cuda/activation.h"
#include "mlp/cuda/tensor_core_layers.h"

namespace fastnode {

// The field, on the numbers of one thread's sample. `Recording`, it leaves the derivatives of
// activations at `derivatives`, in the layout of the activations. `Far`: see side_at.
template <class T, bool Alone, bool Far, bool Recording = false>
struct MlpEvaluation {
  const T* const weights;
  T* const parts;
  const int samples, groups, s, g;
  const Activation activation;
  const T time;
  T* derivatives = nullptr;

  __device__ int index(int feature) const { return feature * samples + s; }
  __device__ void synchronize() const {
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
    tensor_outputs<T, Far>(offset_of(&layer), offset_of(x), offset_of(to));
    synchronize();
    for (int out = g; out < layer.out; out += groups) {
      T sum[1] = {to[index(out)] + constant(layer, out)};
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
      to[index(out + r)] = sum[r];
      if constexpr (Recording) {
        derivatives[index(out + r)] = derivative(activation, before[r], sum[r]);
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
      parts[index(g)] = sum[0];
    }
    synchronize();
    if (g >= layer.out) return;
    T sum[1] = {constant(layer, g)};
    for (int i = 0; i < count; ++i) sum[0] += parts[index(i * layer.out + g)];
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
    x += index(begin);
#pragma unroll(Far ? kSidesAhead<Count, T> : 4)
    for (int i = begin; i < end; ++i, w += kRows, x += samples) {
      const Side<Count, T> side = side_at<Far, Count>(w);
      const T number = *x;
#pragma unroll
      for (int r = 0; r < Count; ++r) sum[r] += side.of[r] * number;
    }
  }
};

// Not inlined, as each kernel would contain half a dozen copies of all activations. x and out are
// offsets, see shared_memory.h. The caller has synchronised since x was written; the threads of the
// sample are synchronised when it returns.
template <class T, bool Alone, bool Far>
__device__ __noinline__ void mlp_evaluate(T time, int x, int out) {
  const MlpTable<T>& table = *at_offset<const MlpTable<T>>(0);
  const auto at = [](int offset) { return at_offset<T>(offset); };
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
    evaluation.synchronize();
  }
}

}  // namespace fastnode
