// A vector field on tiles of samples: what the loops of mlp/cpu solve. Multilayer perceptrons
// (mlp/cpu/field.h) and generated fields (fields/generated.h) are such.
#pragma once

#include <cstdint>
#include <span>

#include "mlp/simd/simd_kernels.h"

namespace fastnode {

// The layout of a tile. With many samples, samples side by side: element (feature, sample)
// at feature * stride + sample. With few, features: (sample, feature) at sample * stride + feature.
// Before the first feature stand as many constants as a layer needs: the time and one.
struct Frame {
  bool sample_major;  // a row for each sample: features side by side
  int64_t samples, lanes;

  int64_t front() const { return sample_major ? lanes : 2 * columns_; }
  int64_t width() const { return columns_; }
  // Numbers in a buffer of so many features, its front included.
  int64_t size(int64_t features) const {
    return sample_major ? samples * stride(features) : (features + 2) * columns_;
  }
  int64_t stride(int64_t features) const {
    return sample_major ? round_up(features, lanes) + 2 * lanes : columns_;
  }
  Extent extent(int64_t features) const {
    if (sample_major) return {samples, round_up(features, lanes), stride(features)};
    return {features, columns_, columns_};
  }
  int64_t place(int64_t feature, int64_t sample, int64_t features) const {
    return sample_major ? sample * stride(features) + feature : feature * columns_ + sample;
  }

  int64_t columns_ = 0;  // samples side by side, a multiple of `lanes`
};

inline Frame make_frame(bool sample_major, int64_t samples, int64_t lanes) {
  Frame frame{sample_major, samples, lanes};
  frame.columns_ = round_up(samples, lanes);
  return frame;
}

// Features of a sample from `begin` to before `end`.
struct Features {
  int64_t begin, end;
};

template <class T>
class Field {
 public:
  Field(const MlpKernels<T>* kernels, bool sample_major, int64_t lanes, int64_t most)
      : kernels(kernels), sample_major(sample_major), lanes(lanes), most(most) {}
  Field(const Field&) = delete;
  Field& operator=(const Field&) = delete;
  virtual ~Field() = default;

  // Runge-Kutta arithmetic for the same vectors.
  const MlpKernels<T>* const kernels;
  // The layout of tiles: of one, of a multiple of `lanes` samples, of at most `most`.
  const bool sample_major;
  const int64_t lanes, most;

  // Samples of a tile of a batch.
  int64_t tile(int64_t batch) const { return sample_major ? batch : most; }
  Frame frame(int64_t samples) const { return make_frame(sample_major, samples, lanes); }

  // Features of a sample.
  virtual int64_t dim() const = 0;
  // The parts of a sample whose errors are measured apart, of which the largest counts: the tensors
  // of a tuple.
  int64_t parts() const { return ends.empty() ? 1 : int64_t(ends.size()); }
  Features part(int64_t i) const {
    if (ends.empty()) return {0, dim()};
    return {i == 0 ? 0 : ends[size_t(i) - 1], ends[size_t(i)]};
  }
  // Of one evaluation of one sample, about.
  virtual int64_t multiplications() const = 0;

  // Numbers that one thread needs for a value.
  virtual int64_t scratch(const Frame& frame) const = 0;
  // out = field(t, x), with a time for each sample; the front of x is written to.
  virtual void value(const Frame& frame, const T* times, T* x, T* scratch, T* out) const = 0;

  // What a gradient needs of one evaluation, in numbers.
  virtual int64_t tape(const Frame& frame) const = 0;
  // The same value, with what its gradient needs written to `tape`.
  virtual void record(const Frame& frame, const T* times, T* x, T* tape, T* scratch,
                      T* out) const = 0;
  // Numbers that one thread needs for a gradient.
  virtual int64_t gradient_scratch(const Frame& frame) const = 0;
  // gx = J^T g, and the parameters' gradients added to those in `gradients`, if it is not null. g
  // is overwritten.
  virtual void gradient(const Frame& frame, const T* x, const T* tape, T* g, T* scratch, T* gx,
                        T* gradients) const = 0;
  // Numbers in the sums of all gradients.
  virtual int64_t parameter_numbers() const = 0;

 protected:
  // Where each part ends; none if there is only one. Not owned.
  std::span<const int64_t> ends;
};

}  // namespace fastnode
