// One update of all parameters of an optimiser's group, on the state tensors of torch's own
// optimiser object.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace fastnode {

// The order of fastnode.train_step.update.RULES.
enum class UpdateRule : int { kAdam, kAdamW, kAdamax, kSgd };

// What torch.optim calls by these names; `momentum` of SGD stands in beta1, its dampening in beta2.
struct UpdateSettings {
  double lr = 0, beta1 = 0, beta2 = 0, eps = 0, weight_decay = 0;
  bool amsgrad = false, maximize = false, nesterov = false;
  bool first_step = false;  // of SGD with momentum: its buffers are empty
};

struct OptimizerUpdate {
  UpdateRule rule;
  // first: exp_avg or momentum_buffer; second: exp_avg_sq or exp_inf; largest: max_exp_avg_sq of
  // amsgrad. Lists that a rule does not have are empty.
  std::vector<at::Tensor> parameters, gradients, first, second, largest, steps;

  // Adam, AdamW and SGD by torch's fused kernels; Adamax, for which torch has none on the CPU, in
  // one pass of our own: Kingma and Ba, ICLR 2015, arXiv 1412.6980, algorithm 2.
  void apply(const UpdateSettings& settings) const;
};

}  // namespace fastnode
