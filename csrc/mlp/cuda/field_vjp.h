// Vector-Jacobian products of the field on the samples of a block, and the gradients of its
// parameters.
#pragma once

#include "mlp/cuda/backward.h"
#include "mlp/cuda/field.h"

namespace fastnode {

template <class T, bool Far>
struct MlpVjp {
  // Samples side by side that are read at once.
  static constexpr int kWide = 16 / int(sizeof(T));

  const T* const weights;
  T* const parts;
  const int samples, groups, s, g;

  __device__ int index(int feature) const { return feature * samples + s; }
  __device__ int threads() const { return samples * groups; }

  // to = W^T from, times what is there if it is to be `scaled`; see MlpEvaluation::multiply.
  __device__ void multiply(const DeviceLayer<T>& layer, const T* from, T* to, bool scaled) const {
    if (tensor_pays<T>(layer.in, layer.out, samples)) {
      return tensor_inputs<T, Far>(offset_of(&layer), offset_of(from), offset_of(to), scaled);
    }
    if (layer.in >= 4 * groups) return columns<4>(layer, from, to, scaled);
    if (layer.in >= 2 * groups) return columns<2>(layer, from, to, scaled);
    if (2 * layer.in <= groups && layer.out >= 16) return shared_sums(layer, from, to, scaled);
    columns<1>(layer, from, to, scaled);
  }

  // Adjacent threads have adjacent inputs, whose weights are in different banks.
  template <int Count>
  __device__ void columns(const DeviceLayer<T>& layer, const T* from, T* to, bool scaled) const {
    const int blocks = (layer.in + Count - 1) / Count;
    for (int b = g; b < blocks; b += groups) {
      T sum[Count];
      int in[Count];
#pragma unroll
      for (int r = 0; r < Count; ++r) {
        sum[r] = 0;
        in[r] = b + r * blocks < layer.in ? b + r * blocks : layer.in - 1;
      }
      add<Count>(layer, in, 0, layer.out, from, sum);
#pragma unroll
      for (int r = 0; r < Count; ++r) {
        if (b + r * blocks < layer.in) put(in[r], sum[r], to, scaled);
      }
    }
  }

  // Few inputs of many outputs: several threads for each, whose sums are added in their order.
  __device__ void shared_sums(const DeviceLayer<T>& layer, const T* from, T* to,
                              bool scaled) const {
    const int most = groups / layer.in, enough = layer.out / (2 * kRows);
    const int count = most < enough ? most : enough, rows = layer.out / kRows;
    const int in[] = {g % layer.in}, part = g / layer.in;
    if (part < count) {
      T sum[1] = {0};
      const int end = part + 1 < count ? rows * (part + 1) / count * kRows : layer.out;
      add<1>(layer, in, rows * part / count * kRows, end, from, sum);
      parts[index(g)] = sum[0];
    }
    __syncthreads();
    if (g >= layer.in) return;
    T sum = 0;
    for (int i = 0; i < count; ++i) sum += parts[index(i * layer.in + g)];
    put(g, sum, to, scaled);
  }

  __device__ void put(int feature, T sum, T* to, bool scaled) const {
    const int i = index(feature);
    to[i] = scaled ? to[i] * sum : sum;
  }

  // Of outputs from `begin`, a multiple of kRows, to `end`.
  template <int Count>
  __device__ void add(const DeviceLayer<T>& layer, const int* in, int begin, int end, const T* x,
                      T* sum) const {
    const int stride = padded_inputs(layer) * kRows;
    const T* w = weights + layer.at + begin / kRows * stride;
    int out = begin;
    if constexpr (Far) {
#pragma unroll(kSidesAhead<kRows, T> / Count)
      for (; out + kRows <= end; out += kRows, w += stride) add_rows<Count>(w, in, out, x, sum);
    } else {
      for (; out + kRows <= end; out += kRows, w += stride) add_rows<Count>(w, in, out, x, sum);
    }
    for (int q = 0; out + q < end; ++q) {
      const T number = x[index(out + q)];
#pragma unroll
      for (int r = 0; r < Count; ++r) {
        sum[r] += side_at<Far, 1>(w + in[r] * kRows + q).of[0] * number;
      }
    }
  }

  template <int Count>
  __device__ __forceinline__ void add_rows(const T* w, const int* in, int out, const T* x,
                                           T* sum) const {
    T number[kRows];
#pragma unroll
    for (int q = 0; q < kRows; ++q) number[q] = x[index(out + q)];
#pragma unroll
    for (int r = 0; r < Count; ++r) {
      const auto side = side_at<Far, kRows>(w + in[r] * kRows);
#pragma unroll
      for (int q = 0; q < kRows; ++q) sum[r] += side.of[q] * number[q];
    }
  }

  // Adds the products of upstream gradients and inputs, of all the block's samples, to `to`. An
  // element is always the same thread's.
  __device__ void add_parameters(const DeviceLayer<T>& layer, const T* upstream, const T* x,
                                 const T* times, T* to) const {
    const int64_t elements = int64_t(layer.in) * layer.out;
    if (tensor_pays<T>(layer.out, samples, layer.in)) {
      tensor_gradient<T>(offset_of(&layer), offset_of(upstream), offset_of(x), to);
    } else if (elements >= 16 * threads()) {
      add_products<4, 4>(layer, upstream, x, to);
    } else if (elements >= 4 * threads()) {
      add_products<2, 2>(layer, upstream, x, to);
    } else {
      add_products<1, 1>(layer, upstream, x, to);
    }
    const int column = layer.time_column, width = layer.in + (column >= 0);
    for (int out = threadIdx.x; out < layer.out; out += threads()) {
      T sum = 0, timed = 0;
      for (int n = 0; n < samples; ++n) {
        const int i = (n + int(threadIdx.x)) % samples;
        sum += upstream[out * samples + i];
        timed += upstream[out * samples + i] * times[i];
      }
      to[int64_t(layer.out) * width + out] += sum;
      if (column >= 0) to[int64_t(out) * width + column] += timed;
    }
  }

  template <int Outs, int Ins>
  __device__ void add_products(const DeviceLayer<T>& layer, const T* upstream, const T* x,
                               T* to) const {
    using Wide = Side<kWide, T>;
    const int across = (layer.in + Ins - 1) / Ins;
    const int tiles = (layer.out + Outs - 1) / Outs * across;
    // Threads of a warp begin at different samples, as inputs lie a multiple of a few banks apart.
    const int chunks = samples / kWide;
    const int turn = int(threadIdx.x) % 32 * samples * int(sizeof(T)) / 128;
    const auto wide = [&](const T* from, int feature, int most, int sample) {
      return *reinterpret_cast<const Wide*>(from + (feature < most ? feature : most - 1) * samples +
                                            sample);
    };
    for (int tile = threadIdx.x; tile < tiles; tile += threads()) {
      const int out = tile / across * Outs, in = tile % across;
      T sum[Outs][Ins] = {};
      for (int n = 0; n < chunks; ++n) {
        const int sample = (n + turn) % chunks * kWide;
        Wide left[Outs], right[Ins];
#pragma unroll
        for (int r = 0; r < Outs; ++r) left[r] = wide(upstream, out + r, layer.out, sample);
#pragma unroll
        for (int q = 0; q < Ins; ++q) right[q] = wide(x, in + q * across, layer.in, sample);
#pragma unroll
        for (int r = 0; r < Outs; ++r) {
#pragma unroll
          for (int q = 0; q < Ins; ++q) {
#pragma unroll
            for (int i = 0; i < kWide; ++i) sum[r][q] += left[r].of[i] * right[q].of[i];
          }
        }
      }
#pragma unroll
      for (int r = 0; r < Outs; ++r) {
#pragma unroll
        for (int q = 0; q < Ins; ++q) {
          const int i = in + q * across;
          if (out + r >= layer.out || i >= layer.in) continue;
          to[gradient_index(layer, out + r, i)] += sum[r][q];
        }
      }
    }
  }
};

// out = J^T g at the state x. The block has synchronised since x, g and the times of the samples
// were written, and is synchronised when it returns. Not inlined, and takes offsets, as
// mlp_evaluate.
template <class T, bool Far>
__device__ __noinline__ void mlp_vjp(T time, int x, int g, int out) {
  const MlpBackTable<T>& table = *at_offset<const MlpBackTable<T>>(0);
  const auto at = [](int offset) { return at_offset<T>(offset); };
  const int thread = int(threadIdx.x), samples = table.samples, count = table.field.count;
  const int unit = samples * int(sizeof(T));
  const T* const weights = weights_by<Far>(at(table.weights));
  MlpEvaluation<T, false, Far, true> evaluation{
      weights,          at(table.parts),        samples, table.groups, thread % samples,
      thread / samples, table.field.activation, time};
  int used = 0, from = x;
  for (int l = 0; l + 1 < count; ++l) {
    const DeviceLayer<T>& layer = table.field.layers[l];
    evaluation.derivatives = at(table.derivatives + used);
    evaluation.multiply(layer, at(from), at(table.hidden + used), false);
    from = table.hidden + used;
    used += layer.out * unit;
    __syncthreads();
  }
  const MlpVjp<T, Far> vjp{weights,      at(table.parts),  samples,
                           table.groups, thread % samples, thread / samples};
  T* sums = table.sums + (table.sums != nullptr ? mlp_numbers(table.field) : 0);
  for (int l = count; l-- > 0;) {
    const DeviceLayer<T>& layer = table.field.layers[l];
    if (l > 0) used -= layer.in * unit;
    const int to = l > 0 ? table.derivatives + used : out;
    if (table.sums != nullptr) {
      sums -= layer_numbers(layer);
      vjp.add_parameters(layer, at(g), at(l > 0 ? table.hidden + used : x), at(table.times), sums);
    }
    vjp.multiply(layer, at(g), at(to), l > 0);
    g = to;
    __syncthreads();
  }
}

}  // namespace fastnode
