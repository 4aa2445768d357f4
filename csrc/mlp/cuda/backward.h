// The discrete adjoint of a solve of types.h by one kernel: arguments, results, and the layout of
// shared memory. Step for step
// csrc/mlp/cpu/adjoint_joint.cpp on the CPU.
//
// Steps are known, so that blocks are independent: each has samples of its own and takes their
// steps in reverse order. The stages of a step are recomputed from the state and the derivative at
// its beginning; the gradient of a stage's state overwrites its derivative, which is not needed any
// more by then. Each block adds up the parameters' gradients of its samples, in shared memory where
// they fit beside all else, and blocks are added up in their order.
#pragma once

#include "mlp/cuda/block_memory.h"

namespace fastnode {

// Blocks of a processor, by their registers. Where weights are in global memory, few blocks are
// resident in any case, as their states fill the shared memory, and many registers hold the loads
// in flight.
template <class T>
constexpr int mlp_back_blocks(bool global_weights) {
  return sizeof(T) == 4 && !global_weights ? 2 : 1;
}

template <class T>
struct MlpBackTask : MlpTask<T> {
  // Of MlpTask: tableau, field, plan, batch, output_count, times, perturb, by sample directions.
  bool adaptive;
  const T* of_ys;  // [output_count, batch, dim], or null
  const T* kept;   // adaptive [most steps, 2, batch, dim], along a grid [steps, 1, batch, dim]
  // Where steps begin and end: edges [steps + 1] of all samples, or by sample the ends of all
  // steps, those of sample b from offsets[b] to offsets[b + 1].
  const double* edges;
  int64_t steps;
  const int64_t* offsets;
  T* gy0;   // [batch, dim]
  T* sums;  // [blocks, mlp_numbers(field)], or null: no parameters
  double*
      output_rates;  // [blocks, output_count]: gradient times the solution's derivative; or null
};

// Numbers in the gradients of all layers: each has those of its weight, as the caller has it, and
// then those of its bias, even if it has none.
template <class T>
FASTNODE_HD int64_t layer_numbers(const DeviceLayer<T>& layer) {
  return int64_t(layer.out) * (layer.in + (layer.time_column >= 0) + 1);
}
template <class T>
FASTNODE_HD int64_t mlp_numbers(const DeviceField<T>& field) {
  int64_t numbers = 0;
  for (int l = 0; l < field.count; ++l) numbers += layer_numbers(field.layers[l]);
  return numbers;
}

// The gradients of all blocks in their order, for each layer.
template <class T>
struct MlpGradientSums {
  DeviceField<T> field;
  const T* sums;
  const double* output_rates;
  int64_t blocks, output_count;
  T *weights[kMostLayers], *biases[kMostLayers];  // biases may be null
  double* rates;                                  // [output_count], or null
};

// On a CUDA stream; each gives a cudaError_t.
#define FASTNODE_DECLARE_MLP_BACKWARD(T)                                \
  int mlp_backward_cuda(const MlpBackTask<T>& task, void* cuda_stream); \
  int mlp_sum_gradients_cuda(const MlpGradientSums<T>& totals, void* cuda_stream);
FASTNODE_DECLARE_MLP_BACKWARD(float)
FASTNODE_DECLARE_MLP_BACKWARD(double)
#undef FASTNODE_DECLARE_MLP_BACKWARD

// A sample in a block: the step at hand, and the outputs in it, from `from` up to `until`; the last
// is at the step's end if `inner` is less.
struct MlpBackwardSample {
  double t, t1, direction;
  int64_t sample, step, from, inner, until;
  bool busy, arrived;
};

// What the VJP of an evaluation needs beside MlpTable.
template <class T>
struct MlpBackTable : MlpTable<T> {
  int hidden, derivatives, times;  // bytes from the beginning of shared memory
  T* sums;                         // of this block; null: no parameters
};

template <class T>
struct MlpBackMemory : MlpMemory<T> {
  MlpBackwardSample* samples;
  // Gradients of the state at the end of the step at hand, of its last stage derivative from the
  // step after it, and of one stage derivative; activations and their derivatives; the times of an
  // evaluation.
  T *gy, *carried, *g, *hidden, *derivatives, *times, *totals;

  // The bytes it takes from `base` on.
  FASTNODE_HD size_t lay(unsigned char* base, const DeviceField<T>& of,
                         const DeviceTableau& tableau, const MlpPlan& plan) {
    MlpPieces pieces{base};
    const int64_t samples = plan.samples, state = of.dim * samples;
    int64_t between = 0;
    for (int l = 0; l + 1 < of.count; ++l) between += of.layers[l].out;
    MlpBackTable<T>* whole;
    pieces.take(whole, 1);
    this->table = whole;
    this->held = nullptr;
    pieces.take(this->samples, samples);
    pieces.take(this->next, 1);
    pieces.take(this->sums, 2 * kMlpIndependentThreads / 32);
    pieces.take(this->weights, weights_here<T>(plan));
    for (T** each : {&this->y, &gy, &carried, &g, &this->stage}) pieces.take(*each, state);
    this->further = this->stage;
    // Written in passing by the stages, before there is a gradient.
    this->y1 = g;
    pieces.take(this->k, (tableau.stages + tableau.further) * state);
    pieces.take(hidden, between * samples);
    pieces.take(derivatives, between * samples);
    // Not in use at once: the stages are recomputed before their VJPs; 2 widest <= 2 between.
    this->first = hidden;
    this->second = hidden + int64_t(of.widest) * samples;
    pieces.take(this->parts, samples * plan.groups);
    pieces.take(times, samples);
    pieces.take(totals, plan.sums_shared ? mlp_numbers(of) : 0);
    return pieces.used;
  }
};

}  // namespace fastnode
