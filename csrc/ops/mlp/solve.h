// Whole solves of MLPs, for Python and for autograd: `fastnode::mlp_solve` and
// `fastnode::mlp_solve_backward`.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <tuple>
#include <vector>

#include "mlp/cuda/types.h"
#include "ops/mlp/layers.h"
#include "ops/mlp/request.h"

namespace fastnode {

// From the ops' arguments: `parameters` holds the weight of each layer, followed by its bias if it
// has one; `layout` for each layer the time's column and whether there is a bias.
std::vector<LayerTensors> mlp_layers(at::TensorList parameters, at::IntArrayRef layout);

// The ops' arguments from layers.
struct MlpArguments {
  std::vector<at::Tensor> parameters;
  std::vector<int64_t> layout;
};
MlpArguments mlp_arguments(const FieldTensors& of);

// Raises ValueError for a number that no activation has.
Activation checked_activation(int64_t number);

// Whether these are tensors that mlp_solve takes: float32 or float64 on the CPU or on one GPU, the
// sizes of the layers fitting each other and y0's last dimension.
bool mlp_fits(const std::vector<LayerTensors>& layers, const at::Tensor& y0);
bool mlp_fits(const FieldTensors& of, const at::Tensor& y0);

// Whether the states of a solve of y0 on its GPU fit on the chip (mlp_plan).
#ifdef FASTNODE_WITH_CUDA
bool mlp_fits_on_chip(const std::vector<LayerTensors>& layers, const at::Tensor& y0,
                      const Tableau& tableau, MlpKind kind);
#else
inline bool mlp_fits_on_chip(const std::vector<LayerTensors>&, const at::Tensor&, const Tableau&,
                             MlpKind) {
  return false;
}
#endif

// Whether one call is faster than the native engine, which calls torch's layers.
bool mlp_pays(const std::vector<LayerTensors>& layers, const at::Tensor& y0, bool gradients);

// [3, edges]: see MlpResult.
at::Tensor step_records(const MlpTrace& trace);

// What only Python can do: raise the error of a solve that cannot go on or what a signal's handler
// raised during it, and give gradients that have gradients themselves. Set when the module is
// loaded.
struct MlpCalls {
  std::function<void(const MlpTrace&, const at::Tensor& y0, int64_t max_num_steps)> fail;
  std::function<void()> interrupt;
  // Of y0, t and the parameters.
  std::function<std::vector<at::Tensor>(
      const at::Tensor& y0, const at::Tensor& t, at::TensorList parameters, at::IntArrayRef layout,
      int64_t activation, const MlpRequest& request, const at::Tensor& steps,
      const at::Tensor& of_ys, const at::Tensor& of_steps)>
      double_backward;
};
MlpCalls& mlp_calls();

// A tape with memory of its own, up to a limit.
std::shared_ptr<Tape> make_tape();

// ys [T, *y0.shape]; steps [3, n + 1], float64: where steps end, the first column where the first
// begins, and each step's local error and stiffness (NaN unless `request.record` or where a method
// has no estimate; zeros in the first column and for fixed steps); counts [2]: evaluations and
// rejected steps; kept [n, parts, *y0.shape]: see Kept, empty unless `request.keep`.
using MlpResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// Through the dispatcher.
MlpResult call_mlp_solve(const at::Tensor& y0, const at::Tensor& t,
                         const std::optional<at::Tensor>& grid, at::TensorList parameters,
                         at::IntArrayRef layout, int64_t activation, const MlpRequest& request);

// Whether tensors like y0 are plain ones on the CPU and nobody watches the dispatcher from below
// autograd: then the functions that follow may be called directly.
bool mlp_runs_directly(const at::Tensor& y0);

// The same on the CPU; writes the tape, if any.
MlpResult mlp_solve_on_cpu(const at::Tensor& y0, const at::Tensor& t,
                           const std::optional<at::Tensor>& grid, FieldTensors of,
                           const MlpRequest& request, Tape* tape);

// ys alone, where nothing needs a gradient: the dispatcher and the records would take a good part
// of a solve of one sample of a small field. It fits y0.
at::Tensor mlp_solve_states(const at::Tensor& y0, FieldTensors of, MlpOptions options,
                            int64_t instructions);

// Gradients of y0, of t (float64, or empty), and of the parameters (or none).
using MlpGradientTensors = std::tuple<at::Tensor, at::Tensor, std::vector<at::Tensor>>;

// What was solved and what came of it; `kept` is that of the solve, or y0 if the request revolves.
struct MlpSolved {
  const MlpRequest& request;
  int64_t activation;
  const at::Tensor &kept, &steps, &t;
};
// Gradients of what a solve returned, and which are wanted.
struct MlpCotangents {
  const std::optional<at::Tensor>&of_ys, &of_steps;
  bool of_parameters, of_times;
};

MlpGradientTensors call_mlp_solve_backward(const MlpSolved& solved, at::TensorList parameters,
                                           at::IntArrayRef layout, const MlpCotangents& given);
// On the CPU; reads the tape, if any.
MlpGradientTensors mlp_solve_backward_on_cpu(const MlpSolved& solved, FieldTensors of,
                                             const MlpCotangents& given, const Tape* tape);

}  // namespace fastnode
