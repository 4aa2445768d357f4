// What the backward pass needs of the stages of accepted steps, so that it need not recompute
// them: their states, and the inputs of all activations and layers. A solve records it
// where there is memory; of other steps the states at their beginning are enough (see Kept).
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "fields/field.h"
#include "mlp/cpu/arena.h"

namespace fastnode {

class Tape {
 public:
  // Memory in blocks of so many bytes, null when there is no more.
  using More = std::function<void*(int64_t)>;

  explicit Tape(More more) : more_(std::move(more)) {}

  // Before the first of `steps` steps, or of more: `tiles` tiles, none larger than `largest`.
  template <class T>
  void begin(const Field<T>& field, const Frame& largest, int64_t stages, int64_t tiles,
             int64_t steps) {
    state_ = Arena::bytes<T>(largest.front() + largest.size(field.dim()));
    stage_ = state_ + Arena::bytes<T>(field.tape(largest));
    tile_ = stages * stage_;
    step_ = tiles * tile_;
    per_block_ = std::clamp<int64_t>(kBlock / step_, 1, kMostSteps);
    while (step_ <= kLargestStep && this->steps() < steps && grow()) continue;
  }

  // Memory for more steps; whether there is any.
  bool grow() {
    void* const block = more_(per_block_ * step_);
    if (block) blocks_.push_back(static_cast<char*>(block));
    return block;
  }

  // Steps that there is memory for.
  int64_t steps() const { return int64_t(blocks_.size()) * per_block_; }

  // Memory of a stage: its state, and what its VJP needs.
  template <class T>
  struct Stage {
    T *state, *record;
  };
  template <class T>
  Stage<T> stage(int64_t step, int64_t tile, int64_t stage, const Frame& frame) const {
    char* const at = blocks_[size_t(step / per_block_)] + (step % per_block_) * step_ +
                     tile * tile_ + stage * stage_;
    return {reinterpret_cast<T*>(at) + frame.front(), reinterpret_cast<T*>(at + state_)};
  }

 private:
  // Measured with two threads of an AMD EPYC (Zen 4), dopri5 of three steps, forward and backward
  // pass with a tape in units of that without: (state, hidden, batch) = (16, 64, 128) 0.89, (64,
  // 128, 128) 0.83, with 0.7 MB for a step; (64, 128, 1024) 0.87 to 1.0, with 5 MB: what does not
  // stay in the cache is read about as fast as it is computed.
  static constexpr int64_t kLargestStep = int64_t(2) << 20, kBlock = int64_t(1) << 20;
  static constexpr int64_t kMostSteps = 16;

  More more_;
  std::vector<char*> blocks_;
  int64_t state_ = 0, stage_ = 0, tile_ = 0, step_ = 0, per_block_ = 1;
};

}  // namespace fastnode
