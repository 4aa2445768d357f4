// Whole solves of a perceptron's field by one kernel on a GPU: arguments and results. Step for step
// the loops of csrc/mlp/cpu.
//
// A block holds its samples' states and stage derivatives in shared memory, and all weights where
// they fit; global memory holds the initial states, the outputs, the records of steps and, where
// they do not fit, the weights, packed once a solve. By count a step of dopri5 in torch's kernels
// moves a state some 30 times through device memory and launches some 40 kernels; here its cost is
// that of the multiplications and, with one size of steps for all samples, of a barrier of all
// blocks. An estimate: no GPU has timed either.
#pragma once

#include "common/failure.h"
#include "mlp/simd/simd_kernels.h"
#include "step_control/rk_control.h"

namespace fastnode {

constexpr int kMostLayers = 8;
constexpr int kMostStages = 17;  // dopri8 has 14, and three for dense output

// Weights of stage i, an entry for each stage before it, begin at i (i - 1) / 2; further stages are
// those of dense output. Zero weights are left out, as their stage derivatives may be NaN.
struct DeviceTableau {
  int stages, further, degree;
  bool fsal;
  double rows[kMostStages * (kMostStages - 1) / 2], fractions[kMostStages];
  double solution[kMostStages], error[kMostStages];
  // The estimate of stiffness (fastnode/control/stiffness.py); a method without has a stability of
  // zero.
  double derivatives[kMostStages], states[kMostStages], stability;
  // As DenseTerms.
  double a[kMostStages][kMaxDegree];

  FASTNODE_HD const double* row(int stage) const { return rows + stage * (stage - 1) / 2; }
};

// weight [out, in], or [out, in + 1] with the time's column at `time_column` (-1: none).
template <class T>
struct DeviceLayer {
  const T *weight, *bias;
  int in, out, time_column;
  int at;  // where its numbers begin among those of all layers, by mlp_plan
};

template <class T>
struct DeviceField {
  DeviceLayer<T> layers[kMostLayers];
  int count, dim, widest;  // widest: of the numbers between layers
  Activation activation;
};

// The layout of a solve. Thread i of a block works on sample i % samples and shares the sample
// with the other `groups` - 1 threads of its kind, each with features of its own.
struct MlpPlan {
  int samples, groups, blocks;
  int64_t weights;      // numbers
  size_t shared;        // bytes
  size_t most_shared;   // that a block may have
  bool global_weights;  // weights are in global memory
  bool alone;           // groups == 1 and threads never synchronise
  bool tensor;          // wide layers by tensor cores
  bool sums_shared;     // backwards: the parameters' gradients are in shared memory too
};

// Bytes of a processor's shared memory that the driver takes for each block (CUDA C++ Programming
// Guide, compute capability 8.x and 9.0).
constexpr size_t kMlpReserved = 1024;

struct MlpDevice {
  int processors;
  size_t shared;  // that one block may have
  bool tensor;    // has tensor cores for float32 and float64, and may use them

  // Blocks with so many bytes that a processor holds at once; one block alone may have all but what
  // is reserved for it.
  size_t blocks(size_t bytes) const { return (shared + kMlpReserved) / (bytes + kMlpReserved); }
};

enum class MlpKind { kJoint, kPerSample, kFixed, kBackward };

// A course and what else a solve, or one of its samples, leaves behind.
struct MlpState {
  Control control;
  int64_t interpolated;  // accepted steps with outputs inside
  Failure failure;
  int seen;  // in the stage derivatives of one that failed: 1 for NaN, 2 for infinities
  bool started;
};

// Of accepted steps with number base, base + 1, ...: [capacity, rows], rows being 1 or the batch.
struct MlpRecords {
  double *ends, *errors, *stiffness;
  int64_t base, capacity, rows;
};

// A solve that ran out of capacity is saved, and goes on by another launch with more (`resumed`).
template <class T>
struct MlpTask {
  DeviceTableau tableau;
  DeviceField<T> field;
  MlpPlan plan;
  int64_t batch, output_count;
  const T* y0;          // [batch, dim]
  T* ys;                // [output_count, batch, dim]
  const double* times;  // joint [output_count], by sample [batch, output_count]
  bool resumed;
  T *y, *f;         // [batch, dim]: saved
  MlpState* state;  // [1], or [batch]
  Controller controller;
  int64_t max_num_steps;
  bool all_together;  // see Span
  MlpRecords records;

  // Joint: numbers; first_step is 0 where it is to be chosen.
  double rtol, atol, first_step;
  double* partial;               // [2, 3, blocks]
  unsigned long long* arrivals;  // zero

  // Where accepted steps began, for the backward pass: states and derivatives; or null.
  T* kept;  // joint and by sample [capacity, 2, batch, dim]

  // By sample: [batch]; first_steps may be null.
  const double *rtols, *atols, *directions, *first_steps;

  // Fixed: steps between the points of the grid, `kept` [grid_count - 1, 1, batch, dim].
  const double* grid;
  int64_t grid_count;
  bool perturb;

  const T* packed;  // [plan.weights], by mlp_pack_cuda; where plan.global_weights
};

// Whether a solve fits, and how; sets DeviceLayer::at. States and stage derivatives of at
// least eight samples must fit into a block's shared memory, of joint solves those of all samples
// into that of all processors.
template <class T>
bool mlp_plan(MlpKind kind, DeviceField<T>& field, const DeviceTableau& tableau, int64_t batch,
              const MlpDevice& device, MlpPlan& plan);

// On a CUDA stream; each gives a cudaError_t.
int mlp_device(int index, MlpDevice* device);
#define FASTNODE_DECLARE_MLP_SOLVE(T)                                            \
  int mlp_pack_cuda(const DeviceField<T>& field, T* numbers, void* cuda_stream); \
  int mlp_joint_cuda(const MlpTask<T>& task, void* cuda_stream);                 \
  int mlp_per_sample_cuda(const MlpTask<T>& task, void* cuda_stream);            \
  int mlp_fixed_cuda(const MlpTask<T>& task, void* cuda_stream);
FASTNODE_DECLARE_MLP_SOLVE(float)
FASTNODE_DECLARE_MLP_SOLVE(double)
#undef FASTNODE_DECLARE_MLP_SOLVE

}  // namespace fastnode
