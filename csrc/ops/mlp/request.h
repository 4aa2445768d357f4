// What is asked of a solve of an MLP beside the problem itself (field, state, times): one struct
// from Python to the kernels. The dispatcher, whose arguments are plain, carries it as `method`,
// `numbers` and `settings`.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mlp/cpu/solve_joint.h"

namespace fastnode {

// What the backward pass starts from: the inputs of stages, as far as memory allows; the states
// where steps begin; or `slots` of these states, between which steps are recomputed.
enum class MlpAdjoint : int64_t { kBackprop, kCheckpoint, kRevolve };

struct MlpRequest {
  std::string method;
  double rtol = 0, atol = 0;
  std::vector<double> controller;  // its nine numbers; none for steps along a grid
  std::optional<double> first_step;
  int64_t max_num_steps = 0;
  bool all_together = false;  // max_num_steps is for the whole solve, not from output to output
  bool perturb = false;       // fixed steps evaluate the field just inside their ends
  bool record = false;        // local errors and stiffness of steps are wanted
  bool keep = false;          // states where steps begin are wanted
  MlpAdjoint adjoint = MlpAdjoint::kBackprop;
  int64_t slots = 0;
  int64_t instructions = 0;

  bool adaptive() const { return !controller.empty(); }
  bool revolves() const { return adjoint == MlpAdjoint::kRevolve; }

  std::vector<double> numbers() const;
  std::vector<int64_t> settings() const;
  // Raises ValueError for sizes and numbers that no request has.
  static MlpRequest from(std::string_view method, at::ArrayRef<double> numbers,
                         at::IntArrayRef settings);
};

// The options of a solve at `times`, by steps along `grid` if the request is for fixed steps.
MlpOptions mlp_options(const MlpRequest& request, std::vector<double> times,
                       const std::optional<at::Tensor>& grid);

// Explicit Runge-Kutta methods by name, which Python registers.
struct MlpMethod {
  std::shared_ptr<const Tableau> tableau;
  std::optional<StiffnessPair> pair;
};
void register_mlp_method(const std::string& name, MlpMethod method);
const MlpMethod& mlp_method(std::string_view name);

// Finite times, at least two, in one direction.
bool mlp_times(const at::Tensor& t, std::vector<double>& times);
// The same; raises ValueError for others.
std::vector<double> read_times(const at::Tensor& t);

}  // namespace fastnode
