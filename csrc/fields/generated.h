// A field whose code was generated and compiled for this machine (fields/code.h).
#pragma once

#include <atomic>
#include <vector>

#include "fields/code.h"
#include "fields/field.h"
#include "mlp/cpu/arena.h"

namespace fastnode {

template <class T>
class GeneratedField final : public Field<T> {
 public:
  // `vjp` may be null where no gradients are asked for. `inputs`: the tensors that the field holds,
  // of which the first ones, of `sizes` numbers each, have gradients. `ends`: where the parts of a
  // sample end, see Field::parts; it must outlive the field.
  GeneratedField(const FieldCode<T>& value, const FieldCode<T>* vjp, std::vector<const T*> inputs,
                 std::vector<int64_t> sizes, std::span<const int64_t> ends, int64_t dim,
                 int64_t multiplications, const MlpKernels<T>* kernels);

  int64_t dim() const override { return dim_; }
  int64_t multiplications() const override { return multiplications_; }
  int64_t scratch(const Frame&) const override { return value_.numbers(); }
  void value(const Frame& frame, const T* times, T* x, T* scratch, T* out) const override;
  // The times: the stage itself is evaluated again by the VJP.
  int64_t tape(const Frame& frame) const override {
    return frame.sample_major ? frame.samples : frame.width();
  }
  void record(const Frame& frame, const T* times, T* x, T* tape, T* scratch, T* out) const override;
  int64_t gradient_scratch(const Frame&) const override;
  // `gradients`: that of the time, then those of the inputs.
  void gradient(const Frame& frame, const T* x, const T* tape, T* g, T* scratch, T* gx,
                T* gradients) const override;
  int64_t parameter_numbers() const override { return numbers_; }

 private:
  // Code with what does not change during a solve, and the memory that a thread needs to run it:
  // what depends on the time alone is kept for as many times as a step has stages, as all tiles ask
  // for the same ones.
  class Ready {
   public:
    Ready() = default;
    Ready(const FieldCode<T>* code, const T* const* inputs);
    int64_t numbers() const;
    void run(const Frame& frame, const T* const* inputs, const T* times, const T* y, const T* g,
             int64_t dim, T* memory, T* out, T* const* sums) const;

   private:
    struct Slots;
    const T* at(const T* time, const T* const* inputs, T* memory) const;
    int64_t slot_numbers() const;

    const FieldCode<T>* code_ = nullptr;
    std::vector<T> per_solve_;
    uint64_t stamp_ = 0;
  };

  const std::vector<const T*> inputs_;
  const std::vector<int64_t> sizes_;
  const int64_t dim_, multiplications_;
  int64_t numbers_ = 1;
  Ready value_, vjp_;
};

}  // namespace fastnode
