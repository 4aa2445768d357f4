// A multilayer perceptron as a vector field on tiles of samples: packed weights, its value and its
// vector-Jacobian products.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "kernels/mlp.h"

namespace fastnode {

// One block of memory for a solve, handed out in lines of 64 bytes.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();

  // Its contents are zeros, or what was there before.
  void reserve(int64_t bytes, bool zeros);
  template <class T>
  T* take(int64_t count) {
    T* const out = reinterpret_cast<T*>(memory_ + used_);
    used_ += bytes<T>(count);
    return out;
  }
  template <class T>
  static int64_t bytes(int64_t count) {
    return round_up(count * int64_t(sizeof(T)), 64);
  }

 private:
  char* memory_ = nullptr;
  int64_t size_ = 0, used_ = 0;
};

// How the numbers of a tile lie. With many samples, samples side by side: element (feature, sample)
// at feature * stride + sample. With few, features: (sample, feature) at sample * stride + feature.
// Before the first feature stand as many constants as a layer needs: the time and one.
struct Frame {
  bool by_sample;  // a row for each sample: features side by side
  int64_t samples, lanes;

  int64_t front() const { return by_sample ? lanes : 2 * columns_; }
  int64_t width() const { return columns_; }
  // Numbers in a buffer of so many features, its front included.
  int64_t size(int64_t features) const {
    return by_sample ? samples * stride(features) : (features + 2) * columns_;
  }
  int64_t stride(int64_t features) const {
    return by_sample ? round_up(features, lanes) + 2 * lanes : columns_;
  }
  Extent extent(int64_t features) const {
    if (by_sample) return {samples, round_up(features, lanes), stride(features)};
    return {features, columns_, columns_};
  }
  int64_t place(int64_t feature, int64_t sample, int64_t features) const {
    return by_sample ? sample * stride(features) + feature : feature * columns_ + sample;
  }

  int64_t columns_ = 0;  // samples side by side, a multiple of a vector
};

Frame make_frame(bool by_sample, int64_t samples, int64_t lanes);

template <class T>
struct Layer {
  int64_t in, out;
  bool timed;
  // [out, in + 1 + timed]: the columns of the time and of one (the bias) stand first.
  const T* weights;
  const T* packed = nullptr;      // for the value
  const T* transposed = nullptr;  // for gradients of the state
  // Whether the gradients of its weights stand as [depth, out] and not as [out, depth], which takes
  // fewer vectors: with constants, depths are rarely a whole number of them.
  bool turned = false;

  int64_t constants() const { return timed ? 2 : 1; }
  int64_t depth() const { return in + constants(); }
};

template <class T>
class MlpField {
 public:
  // A layer as the caller has it: weight [out, in + timed], the time's column at `time_column`, or
  // -1; bias may be null.
  struct Source {
    int64_t in, out;
    const T* weight;
    const T* bias;
    int64_t time_column;
  };

  MlpField(const std::vector<Source>& layers, Activation activation, bool by_sample,
           bool with_gradients, const MlpKernels<T>* kernels);

  // Numbers that one thread needs between layers.
  int64_t scratch(const Frame& frame) const;
  // out = field(t, x), with a time for each sample; the front of x is written to.
  void value(const Frame& frame, const T* times, T* x, T* scratch, T* out) const;

  // What a gradient needs of one evaluation, in numbers.
  int64_t tape(const Frame& frame) const;
  // The same value, with the inputs of all activations and layers kept.
  void record(const Frame& frame, const T* times, T* x, T* tape, T* out) const;
  // Numbers that one thread needs for a gradient.
  int64_t gradient_scratch(const Frame& frame) const;
  // gx = J^T g, and the parameters' gradients added to those in `gradients`, if it is not null,
  // laid out as parameter_numbers says. g is overwritten.
  void gradient(const Frame& frame, const T* x, const T* tape, T* g, T* scratch, T* gx,
                T* gradients) const;
  // Numbers in the gradients of all layers, each gradient_rows(layer) times row_stride(layer) with
  // the rows and columns of Layer::weights, or Layer::turned.
  int64_t parameter_numbers() const;
  int64_t gradient_rows(const Layer<T>& layer) const {
    return layer.turned ? layer.depth() : layer.out;
  }
  int64_t row_stride(const Layer<T>& layer) const {
    return round_up(layer.turned ? layer.out : layer.depth(), kernels->lanes);
  }

  const MlpKernels<T>* kernels;
  std::vector<Layer<T>> layers;
  int64_t dim() const { return layers.back().out; }
  int64_t multiplications() const;

 private:
  int64_t tape_part(const Frame& frame, size_t layer) const;
  void set_time(const Frame& frame, const Layer<T>& layer, const T* times, T* x) const;
  void multiply(const Frame& frame, const Layer<T>& layer, const T* x, T* out) const;
  void add_products(const Frame& frame, const Layer<T>& layer, const T* input, const T* g,
                    T* scratch, T* to) const;

  Activation activation_;
  Arena memory_;
  int64_t widest_ = 0;
};

}  // namespace fastnode
