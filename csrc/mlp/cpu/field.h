// A multilayer perceptron as a vector field on tiles of samples: packed weights, its value and its
// vector-Jacobian products.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "fields/field.h"
#include "mlp/cpu/arena.h"

namespace fastnode {

// How the sums of a layer's weight gradients stand while they are added up.
enum class Sums {
  kByOutput,  // [out, depth]
  kByInput,   // [depth, out], where that takes fewer vectors: with constants, depths are rarely a
              // whole number of them
  kByLane     // [larger, smaller of the two, lanes], added up over the lanes in the end: with few
              // inputs or outputs a product takes less than transposing one of its factors
};

template <class T>
struct Layer {
  int64_t in, out;
  bool timed;
  // [out, in + 1 + timed]: the columns of the time and of one (the bias) stand first.
  const T* weights;
  const T* packed = nullptr;      // for the value
  const T* transposed = nullptr;  // for gradients of the state
  Sums sums = Sums::kByOutput;

  int64_t constants() const { return timed ? 2 : 1; }
  int64_t depth() const { return in + constants(); }
};

template <class T>
class MlpField final : public Field<T> {
 public:
  // A layer as the caller has it: weight [out, in + timed], the time's column at `time_column`, or
  // -1; bias may be null.
  struct Source {
    int64_t in, out;
    const T* weight;
    const T* bias;
    int64_t time_column;
  };

  // For a batch of that size.
  MlpField(const std::vector<Source>& layers, Activation activation, int64_t batch,
           bool with_gradients, const MlpKernels<T>* kernels);

  int64_t scratch(const Frame& frame) const override;
  void value(const Frame& frame, const T* times, T* x, T* scratch, T* out) const override;

  int64_t tape(const Frame& frame) const override;
  // Keeps the inputs of all activations and layers.
  void record(const Frame& frame, const T* times, T* x, T* tape, T* scratch, T* out) const override;
  int64_t gradient_scratch(const Frame& frame) const override;
  // `gradients` are in the layout of Layer::sums.
  void gradient(const Frame& frame, const T* x, const T* tape, T* g, T* scratch, T* gx,
                T* gradients) const override;
  // Numbers in the sums of the gradients of one layer.
  int64_t gradient_numbers(const Layer<T>& layer) const;
  int64_t parameter_numbers() const override;
  // Rows [out, row_stride] of the sums of one layer, with the columns of Layer::weights; in
  // `memory` unless they stand so.
  const T* gradient_rows(const Layer<T>& layer, const T* sums, std::vector<T>& memory) const;
  int64_t row_stride(const Layer<T>& layer) const {
    return round_up(layer.depth(), kernels->lanes);
  }

  using Field<T>::kernels;
  std::vector<Layer<T>> layers;
  int64_t dim() const override { return layers.back().out; }
  int64_t multiplications() const override;
  // Whether few samples are better stored sample by sample, by the number of vectors.
  static bool prefers_sample_major(const std::vector<Source>& layers, int64_t batch, int64_t lanes);

 private:
  // Whether the activation's derivative follows from its value alone.
  bool by_value() const {
    return activation_ == Activation::kTanh || activation_ == Activation::kSigmoid ||
           activation_ == Activation::kRelu || activation_ == Activation::kLeakyRelu ||
           activation_ == Activation::kElu || activation_ == Activation::kSelu;
  }
  int64_t tape_part(const Frame& frame, size_t layer) const;
  void set_time(const Frame& frame, const Layer<T>& layer, const T* times, T* x) const;
  void multiply(const Frame& frame, const Layer<T>& layer, const T* x, T* out) const;
  // Sums by lane take as much memory as there are lanes more, and shall leave most of the first
  // cache to the tile.
  static constexpr int64_t kLargestByLane = int64_t(16) << 10;
  Sums choose_sums(const Layer<T>& layer, bool sample_major) const;
  void add_products(const Frame& frame, const Layer<T>& layer, const T* input, const T* g,
                    T* scratch, T* to) const;

  Activation activation_;
  Arena memory_;
  int64_t widest_ = 0;
};

}  // namespace fastnode
