// Whole solves of multilayer perceptrons, for Python and for autograd: `fastnode::mlp_solve` and
// `fastnode::mlp_solve_backward`.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "mlp/cpu/solve_joint.h"
#include "mlp/cuda/types.h"
#include "ops/mlp/layers.h"

namespace fastnode {

// From the ops' arguments: `parameters` holds the weight of each layer, followed by its bias if it
// has one; `layout` for each layer the time's column and whether there is a bias.
std::vector<LayerTensors> mlp_layers(at::TensorList parameters, at::IntArrayRef layout);

// The ops' arguments from layers.
struct MlpArguments {
  std::vector<at::Tensor> parameters;
  std::vector<int64_t> layout;
};
MlpArguments mlp_arguments(const std::vector<LayerTensors>& layers);

// Whether these are tensors that mlp_solve takes: float32 or float64 on the CPU or on one GPU, the
// sizes of the layers fitting each other and y0's last dimension.
bool mlp_fits(const std::vector<LayerTensors>& layers, const at::Tensor& y0);

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
bool mlp_pays(const std::vector<LayerTensors>& layers, const at::Tensor& y0, bool graph);

// Finite times, at least two, in one direction.
bool mlp_times(const at::Tensor& t, std::vector<double>& times);

// Methods, which Python makes, by name.
struct MlpMethod {
  std::shared_ptr<const Tableau> tableau;
  std::optional<StiffnessPair> pair;
};
void register_mlp_method(const std::string& name, MlpMethod method);
const MlpMethod& mlp_method(std::string_view name);

std::vector<double> read_times(const at::Tensor& t);

// From the arguments of mlp_solve, checked, but for the times: see read_times.
MlpOptions mlp_options(std::vector<double> times, int64_t activation, const MlpMethod& with,
                       double rtol, double atol, at::ArrayRef<double> controller,
                       std::optional<double> first_step, int64_t max_num_steps, bool counted_anew,
                       const std::optional<at::Tensor>& grid, bool perturb, bool stiffness,
                       bool keep);

// [3, edges]: see MlpResult.
at::Tensor step_records(const MlpTrace& trace);

// What Python has to do for C++: raise the error of a solve that cannot go on, and give gradients
// that have gradients themselves.
struct MlpCalls {
  std::function<void(const MlpTrace&, const at::Tensor& y0, int64_t max_num_steps)> fail;
  // Of y0, t and the parameters.
  std::function<std::vector<at::Tensor>(
      const at::Tensor& y0, const at::Tensor& t, at::TensorList parameters, at::IntArrayRef layout,
      int64_t activation, const std::string& method, double rtol, double atol, bool adaptive,
      bool perturb, const at::Tensor& steps, const at::Tensor& of_ys, const at::Tensor& of_steps)>
      replay;
};
MlpCalls& mlp_calls();

// ys [T, *y0.shape]; steps [3, n + 1], float64: where steps end, the first column where the first
// begins, and each step's local error and stiffness (NaN without `stiffness` or where a method has
// none; zeros in the first column and for steps along a grid); counts [2]: evaluations and rejected
// steps; kept [n, parts, *y0.shape]: see Kept, or nothing without `keep`.
using MlpResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// A tape with memory of its own, up to a limit; null where it could not be handed to the backward
// pass, as when the solve is traced.
std::shared_ptr<Tape> make_tape(const at::Tensor& y0);

// A tape with memory of its own, up to a limit.
std::shared_ptr<Tape> make_tape();

// The tape that the next solve of this thread writes, or the next backward pass reads. No argument
// of the ops, whose results are tensors of sizes that a graph can know: a solve that is traced
// leaves it empty.
class TapeGuard {
 public:
  explicit TapeGuard(Tape* tape);
  ~TapeGuard();
  TapeGuard(const TapeGuard&) = delete;
  TapeGuard& operator=(const TapeGuard&) = delete;
  static Tape* take();
};

// Adaptive with the numbers of a controller (nine), along `grid` with none. For gradients states
// are kept, with `tape` those of the stages too (see Tape), or with `slots` none: they are found
// again in the backward pass with so many in memory (see MlpPath).
MlpResult call_mlp_solve(const at::Tensor& y0, const at::Tensor& t, at::TensorList parameters,
                         at::IntArrayRef layout, int64_t activation, std::string_view method,
                         double rtol, double atol, at::ArrayRef<double> controller,
                         std::optional<double> first_step, int64_t max_num_steps, bool counted_anew,
                         const std::optional<at::Tensor>& grid, bool perturb, bool stiffness,
                         bool keep, bool tape, std::optional<int64_t> slots, int64_t instructions);

// ys alone, where nothing needs a gradient: straight, as the way through the dispatcher and the
// records would take a good part of a solve of one sample of a small field. `layers` fit y0.
at::Tensor mlp_solve_states(const at::Tensor& y0, std::vector<LayerTensors> layers,
                            int64_t activation, MlpOptions options, int64_t instructions);

// Gradients of y0, of t (float64, or none), and of the parameters (or none). `kept` is that of the
// solve, or with `slots` y0.
using MlpGradientTensors = std::tuple<at::Tensor, at::Tensor, std::vector<at::Tensor>>;

MlpGradientTensors call_mlp_solve_backward(
    const std::optional<at::Tensor>& of_ys, const std::optional<at::Tensor>& of_steps,
    const at::Tensor& kept, const at::Tensor& steps, const at::Tensor& t, at::TensorList parameters,
    at::IntArrayRef layout, int64_t activation, std::string_view method, double rtol, double atol,
    bool adaptive, bool perturb, bool of_parameters, bool of_times, std::optional<int64_t> slots,
    int64_t instructions);

}  // namespace fastnode
