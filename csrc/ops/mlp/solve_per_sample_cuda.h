// Per-sample solves of perceptrons on a GPU.
#pragma once

#include "mlp/cpu/solve_per_sample.h"
#include "ops/mlp/layers.h"

namespace fastnode {

// On the GPU: the first fields of fastnode.engines.per_sample_trace.Trace, numbers of samples
// [batch] and of all accepted steps, those of the first sample first. `failed` are records without
// steps, of all samples, if one of them failed.
struct SampleTensors {
  at::Tensor ys, evaluations, accepted, rejected, status, t1, error, stiffness;
  // With keep_states [most steps, 2, batch, dim]: where each sample's steps begin, its derivatives
  // there.
  at::Tensor kept;
  std::vector<SampleRecord> failed;
};

// The pointers of `control` are to device memory.
SampleTensors mlp_samples_on_gpu(const std::vector<LayerTensors>& layers, Activation activation,
                                 const at::Tensor& y0, const SampleControl& control);

}  // namespace fastnode
