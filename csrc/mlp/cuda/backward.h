// The exact derivative of a solve of types.h by one kernel: what it is told, what it
// leaves behind, and where things lie in shared memory. Step for step
// csrc/mlp/cpu/adjoint_joint.cpp on the CPU.
//
// Steps are given, so that no block waits for another: each has samples of its own and follows
// their steps backwards. What the derivative of a stage needs is made again from the state and the
// slope at which the step began; what comes back from a stage takes the place of its slope, which
// nothing needs any more by then. Each block adds up the parameters' gradients of its samples, in
// shared memory where they fit beside all else, and blocks are added up in their order.
#pragma once

#include "mlp/cuda/block_memory.h"

namespace fastnode {

// Blocks of a processor, by their registers. One that reads weights from `far` has few beside it
// in any case, as its states fill the shared memory, and many registers to wait for weights with.
template <class T>
constexpr int mlp_back_blocks(bool far) {
  return sizeof(T) == 4 && !far ? 2 : 1;
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
  T* gy0;                // [batch, dim]
  T* sums;               // [blocks, mlp_numbers(field)], or null: no parameters
  double* output_rates;  // [blocks, output_count]: gradient times the solution's slope; or null
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
struct MlpTotals {
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
  int mlp_totals_cuda(const MlpTotals<T>& totals, void* cuda_stream);
FASTNODE_DECLARE_MLP_BACKWARD(float)
FASTNODE_DECLARE_MLP_BACKWARD(double)
#undef FASTNODE_DECLARE_MLP_BACKWARD

// A sample in a block on its way back: the step at hand, and the outputs in it, from `from` up to
// `until`; the last is at the step's end if `inner` is less.
struct MlpWay {
  double t, t1, direction;
  int64_t sample, step, from, inner, until;
  bool busy, arrived;
};

// What following an evaluation backwards must know beside MlpTable.
template <class T>
struct MlpBackTable : MlpTable<T> {
  int hidden, slopes, times;  // bytes from the beginning of shared memory
  T* sums;                    // of this block; null: no parameters
};

template <class T>
struct MlpBackMemory : MlpMemory<T> {
  MlpWay* ways;
  // Gradients of the state where the step at hand ends, of its last slope from the step after it,
  // and of the slope of a stage; activations and their derivatives; the times of an evaluation.
  T *gy, *carried, *g, *hidden, *slopes, *times, *totals;

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
    this->slots = nullptr;
    pieces.take(ways, samples);
    pieces.take(this->next, 1);
    pieces.take(this->sums, 2 * kMlpApart / 32);
    pieces.take(this->weights, weights_here<T>(plan));
    for (T** each : {&this->y, &gy, &carried, &g, &this->stage}) pieces.take(*each, state);
    this->further = this->stage;
    // Written in passing by the stages, before there is a gradient.
    this->y1 = g;
    pieces.take(this->k, (tableau.stages + tableau.further) * state);
    pieces.take(hidden, between * samples);
    pieces.take(slopes, between * samples);
    // While stages are made again, nothing else is there; widest + widest <= 2 between.
    this->first = hidden;
    this->second = hidden + int64_t(of.widest) * samples;
    pieces.take(this->parts, samples * plan.groups);
    pieces.take(times, samples);
    pieces.take(totals, plan.sums_shared ? mlp_numbers(of) : 0);
    return pieces.used;
  }
};

}  // namespace fastnode
