// The adjoint of one step of a tile, whether its samples share the step or not.
#pragma once

#include "mlp/cpu/tile_arithmetic.h"

namespace fastnode {

template <class T>
struct StepAdjoint {
  const Field<T>& field;
  const Tableau& tableau;
  std::vector<T>* const parameters;  // their gradients are added to it, unless it is null
  const size_t stages, all;          // without and with those that only dense output needs
  Frame frame;
  Arena memory;
  // Of the stages: their states, what their VJPs need, k_i, the gradients of their states, and the
  // part of the gradients of k_i that comes from outputs and from the step after this one.
  std::vector<T*> states, tapes, k, gx, direct, sources;
  std::vector<char> has_direct;
  T *scratch = nullptr, *gy = nullptr, *gk = nullptr, *carried = nullptr, *output = nullptr,
    *y = nullptr;
  bool used_further = false;

  // `field` is made with gradients; `more` tiles besides.
  StepAdjoint(const Field<T>& field, const Frame& largest, const Tableau& tableau,
              std::vector<T>* parameters, int64_t more = 0)
      : field(field),
        tableau(tableau),
        parameters(parameters),
        stages(tableau.stages.size()),
        all(stages + tableau.further.size()),
        frame(largest),
        states(all),
        tapes(all),
        k(all),
        gx(all + 1),
        direct(all),
        has_direct(all),
        ones(all + 2, T(1)) {
    const int64_t tape_size = field.tape(frame);
    const int64_t scratch_size = std::max(field.scratch(frame), field.gradient_scratch(frame));
    memory.reserve((int64_t(4 * all + 6) + more) * Arena::bytes<T>(tile_size()) +
                       int64_t(all) * Arena::bytes<T>(tape_size) + Arena::bytes<T>(scratch_size),
                   frame.sample_major);
    for (auto* each : {&states, &k, &gx, &direct}) {
      for (T*& x : *each) x = take_tile();
    }
    for (T** each : {&gy, &gk, &carried, &output, &y}) *each = take_tile();
    for (T*& each : tapes) each = memory.take<T>(tape_size);
    scratch = memory.take<T>(scratch_size);
  }

  int64_t dim() const { return field.dim(); }
  int64_t tile_size() const { return frame.front() + frame.size(dim()); }
  T* take_tile() { return memory.take<T>(tile_size()) + frame.front(); }

  void clear(T* x) const { std::fill_n(x, frame.size(dim()), T(0)); }

  // Evaluates stage i at `times` and keeps what its VJP needs.
  void record(size_t i, const T* times) {
    field.record(frame, times, states[i], tapes[i], scratch, k[i]);
  }

  // gx[i] = J^T g of stage i.
  void stage_vjp(size_t i, T* g) {
    field.gradient(frame, states[i], tapes[i], g, scratch, gx[i],
                   parameters ? parameters->data() : nullptr);
  }

  // The weights of k_j in the stages after it that are used, and in the solution.
  const Weights& column(size_t j) {
    column_.stages.clear();
    column_.values.clear();
    const auto add_row = [&](const Weights& row, size_t i) {
      for (size_t n = 0; n < row.stages.size(); ++n) {
        if (size_t(row.stages[n]) != j) continue;
        column_.stages.push_back(int(i));
        column_.values.push_back(row.values[n]);
      }
    };
    for (size_t i = j + 1; i < (used_further ? all : stages); ++i) {
      add_row(i < stages ? tableau.stages[i] : tableau.further[i - stages], i);
    }
    if (!tableau.fsal) add_row(tableau.solution, all);
    return column_;
  }

  // to += x
  void add(const T* x, T* to) {
    field.kernels->combine(to, &x, ones.data(), false, 1, frame.extent(dim()), to);
  }

  // From the gradient of the state at the end of the step in `gy` to that at its beginning.
  // gather(j) puts the gradient of k_j into `gk` and returns whether it is not zero. Adaptive steps
  // take k_0 from the step before: its gradient goes into `carried`.
  template <class F>
  void backward(bool adaptive, F gather) {
    sum.assign({gy, gx[all]});
    for (size_t i = used_further ? all : stages; i-- > (adaptive ? 1 : 0);) {
      if (gather(i)) {
        stage_vjp(i, gk);
      } else {
        clear(gx[i]);
      }
      // The state of the last stage is the one at the end of the step.
      if (tableau.fsal && i == stages - 1) {
        add(gy, gx[i]);
        sum[0] = gx[i];
      } else {
        sum.push_back(gx[i]);
      }
    }
    if (adaptive) {
      if (!gather(0)) clear(gk);
      std::swap(gk, carried);
    }
    field.kernels->combine(nullptr, sum.data(), ones.data(), false, int(sum.size()),
                           frame.extent(dim()), gk);
    std::swap(gk, gy);
  }

 private:
  Weights column_;
  std::vector<const T*> sum;
  std::vector<T> ones;
};

// The sum of all threads' parts, in their order, into the first.
template <class T>
void sum_parts(std::vector<std::vector<T>>& parts) {
  std::vector<T>& total = parts.front();
  for (size_t i = 1; i < parts.size(); ++i) {
    for (size_t j = 0; j < total.size(); ++j) total[j] += parts[i][j];
  }
}

}  // namespace fastnode
