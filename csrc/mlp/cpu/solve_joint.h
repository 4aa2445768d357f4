// A whole solve of a field: the loop, the stages, the field and the control
// of the steps, on tiles of samples that stay in the cache. Step for step the loops of
// fastnode.engines.reference.adaptive and fastnode.engines.reference.fixed.
#pragma once

#include <atomic>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "common/interrupt.h"
#include "common/tableau.h"
#include "fields/field.h"
#include "mlp/cpu/arena.h"
#include "mlp/cpu/tape.h"
#include "step_control/controller.h"

namespace fastnode {

struct MlpOptions {
  std::shared_ptr<const Tableau> tableau;
  std::vector<double> times;  // where the solution is wanted
  // Adaptive steps, or else steps along `grid`.
  bool adaptive = true;
  Controller controller{};
  double rtol = 0, atol = 0;
  std::optional<double> first_step;
  bool first_step_alone = false;  // a single step, accepted whatever its error
  int64_t max_num_steps = 0;
  bool all_together = false;  // max_num_steps is for the whole solve, not from output to output
  std::optional<StiffnessPair> pair;
  std::vector<double> grid;
  bool perturb = false;
  bool keep_states = false;  // what gradients need
  Tape* tape = nullptr;      // what they are faster with

  double direction() const { return times.back() >= times.front() ? 1.0 : -1.0; }
  // Rows [batch, dim] that are kept of each step.
  int64_t parts() const { return adaptive ? 2 : 1; }
};

enum class Ending : int { kFinished, kBadStart, kStuck, kInterrupted };

// What a solve leaves behind.
struct MlpTrace {
  std::vector<double> edges;  // where steps begin and end
  std::vector<double> error, stiffness;
  int64_t evaluations = 0, rejected = 0;
  Ending ending = Ending::kFinished;
  // Of a solve that could not go on: where it stood, and what it was about to try.
  double t = 0, h = 0, ratio = 0;
  int64_t attempts = 0;
  bool saw_nan = false, saw_infinity = false;
};

// Runs body(thread, threads) on at most so many threads at once, all of them at work together,
// after prepare(threads) on one.
using Parallel = std::function<void(int, const std::function<void(int)>& prepare,
                                    const std::function<void(int, int)>& body)>;

// Memory that grows without a copy where the system moves pages: [steps, parts, batch, dim], of
// each accepted step the state and, of adaptive steps, the derivative at its beginning.
template <class T>
class Kept {
 public:
  Kept() = default;
  Kept(const Kept&) = delete;
  Kept& operator=(const Kept&) = delete;
  ~Kept() { std::free(memory_); }

  void reserve(int64_t numbers) {
    void* const memory = std::realloc(memory_, size_t(numbers) * sizeof(T));
    if (!memory) throw std::bad_alloc();
    memory_ = memory;
  }
  T* data() const { return static_cast<T*>(memory_); }
  // Hands over memory that std::free() frees.
  T* release() { return static_cast<T*>(std::exchange(memory_, nullptr)); }

 private:
  void* memory_ = nullptr;
};

template <class T>
struct Tile {
  Frame frame;
  int64_t first;  // sample
  // y and the stage derivatives of the step at hand, and y1 at its end. Stage derivatives but the
  // first and the last may share memory with those of the thread's other tiles.
  T *y, *y1, *stage;
  std::vector<T*> k;
};

template <class T>
class MlpSolve {
 public:
  // A solve of `batch` states of the field's dimension; `field` must outlive it.
  MlpSolve(const Field<T>& field, int64_t batch, MlpOptions options);

  // y0 [batch, dim] into ys [times, batch, dim].
  MlpTrace run(const T* y0, T* ys, int threads, const Parallel& parallel);

  int64_t tiles() const { return int64_t(tiles_.size()); }
  // What gradients need (see MlpOptions::keep_states).
  Kept<T>& kept() { return kept_; }

 private:
  struct Worker;

  int64_t sums_of_a_turn() const { return 3 * field_->parts() * tiles(); }

  // Whether each tile has its own memory for k_i: for the first, for the last, which may be the
  // next step's first, and for all where dense output may need them after the tiles' errors are
  // known. Otherwise the tiles of a thread share it, while it is still in the cache.
  bool owns(size_t i) const {
    return i == 0 || i + 1 == options_.tableau->stages.size() ||
           (options_.adaptive && options_.times.size() > 2);
  }

  const Field<T>* field_;
  MlpOptions options_;
  int64_t batch_, dim_;
  std::vector<Tile<T>> tiles_;
  Arena memory_;
  // [2, 3, parts, tiles], and [2]: not zero where the solve is to end.
  std::vector<double> sums_;
  Kept<T> kept_;
  std::atomic<bool> saw_nan_{false}, saw_infinity_{false};
  Interruption interruption_;
};

}  // namespace fastnode
