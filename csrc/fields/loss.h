// The loss of a batch and its gradients, by code that was generated for one sample (fields/code.h).
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "common/interrupt.h"
#include "fields/code.h"
#include "mlp/cpu/arena.h"

namespace fastnode {

// What a loss reads of each sample: `size` numbers at from[row * stride + i * step], the row being
// picked[sample], or the sample itself where nothing is picked.
struct SampleRows {
  const void* from;
  int64_t size, stride, step;
  const int64_t* picked = nullptr;
  // Whether they are of int64; then all lie between these.
  bool whole = false;
  int64_t least = 0, most = 0;
};

// Runs body(thread, threads) after prepare(threads).
using RunParallel = void (*)(int threads, const std::function<void(int)>& prepare,
                             const std::function<void(int, int)>& body);

enum class LossEnding { kDone, kOutOfRange, kInterrupted };

template <class T>
class GeneratedLoss {
 public:
  // The code maps the numbers of a sample to `parts` parts of its loss, and after them the
  // gradients for `of_rows` of these numbers. Gradients of inputs, of `sizes` numbers each, are
  // added to sums.
  GeneratedLoss(const FieldCode<T>& code, int64_t numbers, int64_t parts, int64_t of_rows,
                std::vector<int64_t> sizes);

  // parts = weight times the sum over samples; gradients, one after the other, are those of the
  // first part. row_gradients: [batch, of_rows] or null. Sums are made in an order that depends on
  // the number of threads alone. Unless it is done the results hold nothing of use.
  LossEnding run(const T* const* inputs, std::span<const SampleRows> rows, int64_t batch, T weight,
                 int threads, RunParallel parallel, double* parts, T* gradients, T* row_gradients);

  int64_t lanes() const { return code_.lanes; }
  int64_t gradient_numbers() const { return gradient_numbers_; }

 private:
  struct Work;
  LossEnding load(std::span<const SampleRows> rows, int64_t first, int64_t count, T* tile) const;

  const FieldCode<T>& code_;
  const int64_t numbers_, parts_, of_rows_;
  const std::vector<int64_t> sizes_;
  int64_t gradient_numbers_ = 0;
  // Kept from step to step: fresh memory costs a page fault for every 4 KiB.
  std::vector<T> per_solve_, per_time_;
  std::vector<std::vector<T>> memory_;
};

}  // namespace fastnode
