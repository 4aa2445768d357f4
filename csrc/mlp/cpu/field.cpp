#include "mlp/cpu/field.h"

#include <algorithm>

namespace fastnode {

template <class T>
bool MlpField<T>::prefers_sample_major(const std::vector<Source>& layers, int64_t batch,
                                       int64_t lanes) {
  // An activation costs about twenty multiplications.
  int64_t rows = 0, columns = 0;
  for (const Source& each : layers) {
    const int64_t work = each.in + 20;
    rows += batch * round_up(each.out, lanes) / lanes * work;
    columns += each.out * round_up(batch, lanes) / lanes * work;
  }
  return batch < lanes && rows < columns;
}

template <class T>
MlpField<T>::MlpField(const std::vector<Source>& sources, Activation activation, int64_t batch,
                      bool with_gradients, const MlpKernels<T>* table)
    : Field<T>(table, prefers_sample_major(sources, batch, table->lanes), table->lanes,
               2 * table->lanes),
      activation_(activation) {
  const int64_t lanes = kernels->lanes;
  const bool sample_major = this->sample_major;
  int64_t bytes = 0;
  for (const Source& each : sources) {
    const int64_t depth = each.in + (each.time_column >= 0 ? 2 : 1);
    bytes += Arena::bytes<T>(each.out * depth) + Arena::bytes<T>(depth * round_up(each.out, lanes));
    if (with_gradients) bytes += Arena::bytes<T>(each.out * round_up(each.in, lanes));
    widest_ = std::max({widest_, each.in, each.out});
  }
  memory_.reserve(bytes, false);
  for (const Source& each : sources) {
    Layer<T> layer{each.in, each.out, each.time_column >= 0, nullptr};
    const int64_t depth = layer.depth(), constants = layer.constants();
    T* const weights = memory_.take<T>(layer.out * depth);
    const int64_t columns = each.in + (layer.timed ? 1 : 0);
    for (int64_t m = 0; m < layer.out; ++m) {
      T* to = weights + m * depth;
      const T* from = each.weight + m * columns;
      to[constants - 1] = each.bias ? each.bias[m] : T(0);
      if (layer.timed) {
        const int64_t place = each.time_column;
        to[0] = from[place];
        std::copy(from, from + place, to + constants);
        std::copy(from + place + 1, from + columns, to + constants + place);
      } else {
        std::copy(from, from + columns, to + constants);
      }
    }
    layer.weights = weights;
    T* const packed = memory_.take<T>(depth * round_up(layer.out, lanes));
    layer.packed = packed;
    if (sample_major) {
      pack_right(weights, 1, depth, depth, layer.out, lanes, packed);
    } else {
      pack_left(weights, depth, 1, layer.out, depth, kernels->block, packed);
    }
    if (with_gradients) {
      T* const transposed = memory_.take<T>(layer.out * round_up(layer.in, lanes));
      layer.transposed = transposed;
      if (sample_major) {
        pack_right(weights + constants, depth, 1, layer.out, layer.in, lanes, transposed);
      } else {
        pack_left(weights + constants, 1, depth, layer.in, layer.out, kernels->block, transposed);
      }
    }
    layer.sums = choose_sums(layer, sample_major);
    layers.push_back(layer);
  }
}

template <class T>
int64_t MlpField<T>::multiplications() const {
  int64_t total = 0;
  for (const Layer<T>& layer : layers) total += layer.out * layer.depth();
  return total;
}

template <class T>
void MlpField<T>::set_time(const Frame& frame, const Layer<T>& layer, const T* times, T* x) const {
  if (frame.sample_major) {
    const int64_t stride = frame.stride(layer.in);
    for (int64_t s = 0; s < frame.samples; ++s) {
      x[s * stride - 1] = 1;
      if (layer.timed) x[s * stride - 2] = times[s];
    }
    return;
  }
  std::fill(x - frame.width(), x, T(1));
  if (layer.timed) std::copy(times, times + frame.width(), x - 2 * frame.width());
}

template <class T>
void MlpField<T>::multiply(const Frame& frame, const Layer<T>& layer, const T* x, T* out) const {
  const int64_t depth = layer.depth(), constants = layer.constants();
  if (frame.sample_major) {
    kernels->multiply_right({frame.samples, round_up(layer.out, frame.lanes), depth, x - constants,
                             frame.stride(layer.in), layer.packed, 0, out, frame.stride(layer.out),
                             !layer.timed});
  } else {
    const int64_t width = frame.width();
    kernels->multiply_left({layer.out, width, depth, layer.packed, 0, x - constants * width, width,
                            out, width, !layer.timed});
  }
}

template <class T>
int64_t MlpField<T>::scratch(const Frame& frame) const {
  return 2 * round_up(frame.front() + frame.size(widest_), frame.lanes);
}

template <class T>
void MlpField<T>::value(const Frame& frame, const T* times, T* x, T* scratch, T* out) const {
  const int64_t half = round_up(frame.front() + frame.size(widest_), frame.lanes);
  for (size_t l = 0; l < layers.size(); ++l) {
    const Layer<T>& layer = layers[l];
    if (layer.timed) set_time(frame, layer, times, x);
    const bool last = l + 1 == layers.size();
    T* const y = last ? out : scratch + (l % 2) * half + frame.front();
    multiply(frame, layer, x, y);
    if (!last) kernels->activate(activation_, y, y, frame.extent(layer.out));
    x = y;
  }
}

// For each layer but the last the next one's input with its constants, and where the derivative of
// the activation needs it, what the layer returned.
template <class T>
int64_t MlpField<T>::tape_part(const Frame& frame, size_t layer) const {
  const int64_t numbers = round_up(frame.front() + frame.size(layers[layer].out), frame.lanes);
  return by_value() ? numbers : 2 * numbers;
}

template <class T>
int64_t MlpField<T>::tape(const Frame& frame) const {
  int64_t total = 0;
  for (size_t l = 0; l + 1 < layers.size(); ++l) total += tape_part(frame, l);
  return total;
}

template <class T>
void MlpField<T>::record(const Frame& frame, const T* times, T* x, T* tape, T*, T* out) const {
  for (size_t l = 0; l < layers.size(); ++l) {
    const Layer<T>& layer = layers[l];
    set_time(frame, layer, times, x);
    if (l + 1 == layers.size()) {
      multiply(frame, layer, x, out);
      return;
    }
    const int64_t part = tape_part(frame, l);
    T *const z = tape + frame.front(), *const a = by_value() ? z : z + part / 2;
    multiply(frame, layer, x, z);
    kernels->activate(activation_, z, a, frame.extent(layer.out));
    x = a;
    tape += part;
  }
}

template class MlpField<float>;
template class MlpField<double>;

}  // namespace fastnode
