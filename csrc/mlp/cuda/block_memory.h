// The layout of the shared memory of a block that solves perceptrons.
#pragma once

#include "mlp/cuda/types.h"

namespace fastnode {

// Threads of a block at most: where all blocks synchronise, where blocks are independent, and where
// threads are.
constexpr int kMlpJointThreads = 512, kMlpIndependentThreads = 256, kMlpAloneThreads = 128;
// Weights of so many outputs are adjacent, for each input: one access of 16 bytes in float32.
constexpr int kRows = 4;

template <class T>
FASTNODE_HD int padded_rows(const DeviceLayer<T>& layer) {
  return (layer.out + kRows - 1) / kRows * kRows;
}
// Inputs from one such group of outputs to the next: an odd number, so that threads that read
// different groups have no bank conflicts.
template <class T>
FASTNODE_HD int padded_inputs(const DeviceLayer<T>& layer) {
  return layer.in | 1;
}

template <class T>
FASTNODE_HD int weight_index(const DeviceLayer<T>& layer, int out, int in) {
  return layer.at + (out / kRows * padded_inputs(layer) + in) * kRows + out % kRows;
}

// A sample in a block, or all of them where they have one course.
struct MlpBlockSample {
  MlpState state;
  double rtol, atol;
  int64_t sample;
  bool busy, arrived;
};

// What an evaluation needs, at the beginning of shared memory: a function that is called reads the
// arguments of the kernel slowly, and each argument of its own takes a register of the caller.
// Buffers are offsets in bytes into shared memory.
template <class T>
struct MlpTable {
  DeviceField<T> field;
  int samples, groups, weights, first, second, parts;
  bool tensor;
};

// What a block holds of the weights: all numbers, or a pointer to them.
template <class T>
FASTNODE_HD int64_t weights_here(const MlpPlan& plan) {
  return plan.global_weights ? int64_t(16 / sizeof(T)) : plan.weights;
}

// Hands out memory in pieces of 16 bytes.
struct MlpPieces {
  unsigned char* base;
  size_t used = 0;

  template <class X>
  FASTNODE_HD void take(X*& out, int64_t count) {
    out = reinterpret_cast<X*>(base + used);
    used += (size_t(count) * sizeof(X) + 15) / 16 * 16;
  }
};

// The shared memory of a block. Tiles are [feature, samples]: the threads of a warp, which have
// adjacent samples, have no bank conflicts and read the same weights.
template <class T>
struct MlpMemory {
  MlpTable<T>* table;
  MlpBlockSample* held;
  int* next;
  double* sums;  // [2, 3, ...], in turns
  T *weights, *y, *y1, *stage, *further, *k, *first, *second, *parts;

  // The bytes it takes from `base` on.
  FASTNODE_HD size_t lay(unsigned char* base, const DeviceField<T>& of,
                         const DeviceTableau& tableau, const MlpPlan& plan, bool joint) {
    MlpPieces pieces{base};
    const int64_t state = int64_t(of.dim) * plan.samples;
    pieces.take(table, 1);
    pieces.take(held, joint ? 1 : plan.samples);
    pieces.take(next, 1);
    const int sums_of = joint ? kMlpJointThreads / 32 : sharing(of, plan) * plan.samples;
    pieces.take(sums, plan.alone ? 0 : 6 * sums_of);
    pieces.take(weights, weights_here<T>(plan));
    pieces.take(y, state);
    pieces.take(y1, state);
    stage = further = y1;
    if (!tableau.fsal) pieces.take(stage, state);
    further = stage;
    if (tableau.fsal && tableau.further > 0) pieces.take(further, state);
    pieces.take(k, (tableau.stages + tableau.further) * state);
    const int64_t between = int64_t(of.widest) * plan.samples;
    pieces.take(first, of.count > 1 ? between : 0);
    pieces.take(second, of.count > 2 ? between : 0);
    pieces.take(parts, plan.alone ? 0 : plan.samples * plan.groups);
    return pieces.used;
  }

  // Threads of a sample that have features of its state.
  FASTNODE_HD static int sharing(const DeviceField<T>& field, const MlpPlan& plan) {
    return plan.groups < field.dim ? plan.groups : field.dim;
  }
};

}  // namespace fastnode
