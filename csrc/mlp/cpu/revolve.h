// Where a solve kept no states: those at which steps begin are recomputed from the initial one,
// with a fixed number of them in memory (fastnode.adjoints.discrete.revolve, which gives the
// source). No tile needs another, so that each thread keeps states of the tile at hand alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "mlp/cpu/tile_arithmetic.h"

namespace fastnode {

// fastnode.adjoints.discrete.revolve.split
inline int64_t revolve_split(int64_t length, int64_t free) {
  if (free == 0) return length - 1;
  const auto binomial = [](int64_t n, int64_t m) {
    // Exact as long as it matters: numbers beyond `length` are only compared.
    int64_t out = 1;
    for (int64_t i = 1; i <= m && out <= (int64_t(1) << 40); ++i) out = out * (n - m + i) / i;
    return out;
  };
  const int64_t s = free + 1;
  int64_t r = 1;
  while (binomial(s + r, s) < length) ++r;
  const int64_t most = binomial(s + r - 1, s), rest = binomial(s + r - 1, s - 1);
  return std::min(most, std::max(length - rest, r > 1 ? binomial(s + r - 2, s) : int64_t(1)));
}

// The steps of one tile of `Adjoint`.
template <class Adjoint>
struct Replay {
  Adjoint& of;

  // All steps, from the last to the first.
  void backward(size_t& next) {
    of.arithmetic.load(of.step.frame, of.path.y0 + of.first * of.dim(), of.step.y);
    if (of.path.adaptive) evaluate(of.path.edges[0], of.step.y, of.step.k[0]);
    save(0);
    reverse(0, of.path.steps(), 0, of.path.slot_count() - 1, next);
  }

 private:
  template <class T>
  void evaluate(double time, T* state, T* derivative) {
    of.step.field.value(of.step.frame, of.arithmetic.times(of.step.frame, T(time)), state,
                        of.step.scratch, derivative);
    of.look_up(1);
  }

  void save(size_t slot) {
    const Extent extent = of.step.frame.extent(of.dim());
    copy_tile(extent, of.step.y, of.slots[2 * slot]);
    if (of.path.adaptive) copy_tile(extent, of.step.k[0], of.slots[2 * slot + 1]);
  }

  void restore(size_t slot) {
    const Extent extent = of.step.frame.extent(of.dim());
    copy_tile(extent, of.slots[2 * slot], of.step.y);
    if (of.path.adaptive) copy_tile(extent, of.slots[2 * slot + 1], of.step.k[0]);
  }

  // From the state and the derivative at the beginning of step `from` to those of step `to`.
  void advance(int64_t from, int64_t to) {
    const Tableau& tableau = of.tableau;
    auto &y = of.step.y, &output = of.step.output;
    for (int64_t n = from; n < to && !of.poll.requested(); ++n) {
      const double t = of.path.edges[size_t(n)], t1 = of.path.edges[size_t(n) + 1];
      if (!of.path.adaptive) evaluate(of.first_time(t), y, of.step.k[0]);
      for (size_t i = 1; i < of.stages; ++i) {
        of.arithmetic.combine(of.step.frame, y, of.step.k.data(), tableau.stages[i], t1 - t,
                              of.step.states[i]);
        evaluate(of.time_of(i, t, t1), of.step.states[i], of.step.k[i]);
      }
      if (tableau.fsal) {
        std::swap(y, of.step.states[of.stages - 1]);
      } else {
        of.arithmetic.combine(of.step.frame, y, of.step.k.data(), tableau.solution, t1 - t, output);
        std::swap(y, output);
      }
      if (of.path.adaptive) std::swap(of.step.k[0], of.step.k[of.stages - 1]);
    }
  }

  // Steps from `to` back to `from`, whose beginning is in `slot`, with `free` slots after that.
  void reverse(int64_t from, int64_t to, size_t slot, int64_t free, size_t& next) {
    while (to - from > 1 && !of.poll.requested()) {
      const int64_t middle = from + revolve_split(to - from, free);
      restore(slot);
      advance(from, middle);
      if (free > 0) {
        save(slot + 1);
        reverse(middle, to, slot + 1, free - 1, next);
      } else {
        of.step_backward(size_t(middle), next);
      }
      to = middle;
    }
    restore(slot);
    of.step_backward(size_t(from), next);
  }
};

}  // namespace fastnode
