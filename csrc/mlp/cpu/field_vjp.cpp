// Vector-Jacobian products of a multilayer perceptron, and the sums of its parameters' gradients.
#include <algorithm>

#include "mlp/cpu/field.h"

namespace fastnode {

template <class T>
Sums MlpField<T>::choose_sums(const Layer<T>& layer, bool sample_major) const {
  const int64_t lanes = kernels->lanes, out = layer.out, depth = layer.depth();
  const int64_t bytes = out * depth * lanes * int64_t(sizeof(T));
  if (!sample_major && std::min(out, depth) <= kernels->few && bytes <= kLargestByLane) {
    return Sums::kByLane;
  }
  const bool turned = depth * round_up(out, lanes) < out * round_up(depth, lanes);
  return turned ? Sums::kByInput : Sums::kByOutput;
}

template <class T>
int64_t MlpField<T>::gradient_numbers(const Layer<T>& layer) const {
  const int64_t lanes = kernels->lanes, depth = layer.depth();
  if (layer.sums == Sums::kByLane) return layer.out * depth * lanes;
  if (layer.sums == Sums::kByInput) return depth * round_up(layer.out, lanes);
  return layer.out * row_stride(layer);
}

template <class T>
int64_t MlpField<T>::parameter_numbers() const {
  int64_t total = 0;
  for (const Layer<T>& layer : layers) total += gradient_numbers(layer);
  return total;
}

template <class T>
const T* MlpField<T>::gradient_rows(const Layer<T>& layer, const T* sums,
                                    std::vector<T>& memory) const {
  if (layer.sums == Sums::kByOutput) return sums;
  const int64_t lanes = kernels->lanes, depth = layer.depth(), stride = row_stride(layer);
  if (layer.sums == Sums::kByInput) {
    const int64_t columns = round_up(layer.out, lanes);
    memory.resize(size_t(columns * stride));
    kernels->transpose(sums, depth, columns, memory.data(), stride);
    return memory.data();
  }
  memory.resize(size_t(layer.out * stride));
  const bool few_inputs = depth < layer.out;
  const int64_t many = few_inputs ? layer.out : depth, few = few_inputs ? depth : layer.out;
  for (int64_t i = 0; i < many; ++i) {
    for (int64_t j = 0; j < few; ++j, sums += lanes) {
      T total = 0;
      for (int64_t lane = 0; lane < lanes; ++lane) total += sums[lane];
      memory[size_t(few_inputs ? i * stride + j : j * stride + i)] = total;
    }
  }
  return memory.data();
}

template <class T>
int64_t MlpField<T>::gradient_scratch(const Frame& frame) const {
  const int64_t half = round_up(frame.front() + frame.size(widest_), frame.lanes);
  const int64_t turned =
      frame.sample_major ? 0 : frame.width() * (round_up(widest_ + 2, frame.lanes));
  return 2 * half + turned;
}

// to += the products of the layer's inputs and constants with the upstream gradient g, over all
// samples. Where samples lie side by side and are added up, one factor has to be turned; the other
// is read across.
template <class T>
void MlpField<T>::add_products(const Frame& frame, const Layer<T>& layer, const T* input,
                               const T* g, T* scratch, T* to) const {
  const int64_t width = frame.width(), depth = layer.depth(), lanes = kernels->lanes;
  input -= layer.constants() * (frame.sample_major ? 1 : width);
  if (layer.sums == Sums::kByLane) {
    const bool few_inputs = depth < layer.out;
    return kernels->accumulate_lanes(few_inputs ? input : g, std::min(depth, layer.out),
                                     few_inputs ? g : input, std::max(depth, layer.out), width, to);
  }
  const bool turned = layer.sums == Sums::kByInput;
  const int64_t rows = turned ? depth : layer.out;
  const int64_t stride = round_up(turned ? layer.out : depth, lanes);
  const T *const left = turned ? input : g, *const right = turned ? g : input;
  if (frame.sample_major) {
    const int64_t of_input = frame.stride(layer.in), of_g = frame.stride(layer.out);
    kernels->accumulate({rows, stride, frame.samples, left, turned ? of_input : of_g, right,
                         turned ? of_g : of_input, to, stride});
    return;
  }
  kernels->transpose(right, turned ? layer.out : depth, width, scratch, stride);
  kernels->accumulate_across({rows, stride, width, left, width, scratch, stride, to, stride});
}

template <class T>
void MlpField<T>::gradient(const Frame& frame, const T* x, const T* tape, T* g, T* scratch, T* gx,
                           T* gradients) const {
  const int64_t half = round_up(frame.front() + frame.size(widest_), frame.lanes);
  T* const turned = scratch + 2 * half;
  const T* end = tape + this->tape(frame);
  T* to = gradients ? gradients + parameter_numbers() : nullptr;
  for (size_t l = layers.size(); l-- > 0;) {
    const Layer<T>& layer = layers[l];
    const int64_t part = l == 0 ? 0 : tape_part(frame, l - 1);
    end -= part;
    const T* const z = end + frame.front();
    const T* const input = l == 0 ? x : by_value() ? z : z + part / 2;
    if (to) {
      to -= gradient_numbers(layer);
      add_products(frame, layer, input, g, turned, to);
    }
    T* const y = l == 0 ? gx : scratch + (l % 2) * half + frame.front();
    if (frame.sample_major) {
      kernels->multiply_right({frame.samples, round_up(layer.in, frame.lanes), layer.out, g,
                               frame.stride(layer.out), layer.transposed, 0, y,
                               frame.stride(layer.in)});
    } else {
      const int64_t width = frame.width();
      kernels->multiply_left({layer.in, width, layer.out, layer.transposed, 0, g, width, y, width});
    }
    if (l > 0) kernels->derive(activation_, z, input, y, frame.extent(layer.in));
    g = y;
  }
}

#define FASTNODE_GRADIENTS(T)                                                                     \
  template Sums MlpField<T>::choose_sums(const Layer<T>&, bool) const;                            \
  template int64_t MlpField<T>::gradient_numbers(const Layer<T>&) const;                          \
  template int64_t MlpField<T>::parameter_numbers() const;                                        \
  template const T* MlpField<T>::gradient_rows(const Layer<T>&, const T*, std::vector<T>&) const; \
  template int64_t MlpField<T>::gradient_scratch(const Frame&) const;                             \
  template void MlpField<T>::gradient(const Frame&, const T*, const T*, T*, T*, T*, T*) const;
FASTNODE_GRADIENTS(float)
FASTNODE_GRADIENTS(double)
#undef FASTNODE_GRADIENTS

}  // namespace fastnode
