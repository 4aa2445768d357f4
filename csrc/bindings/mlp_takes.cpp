// fastnode._C.mlp_takes, which fastnode.engines.fused.refusal calls.
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include "bindings/bindings.h"
#include "bindings/mlp_arguments.h"
#include "bindings/read_layers.h"
#include "ops/mlp/solve.h"

namespace fastnode {
namespace {

using at::Tensor;

// Whether mlp_solve takes these arguments, and without `forced` whether it is faster than another
// engine.
bool takes(const py::list& given_layers, int64_t number, py::handle y0, py::handle t,
           const MlpRequest& request, bool forced) {
  // Autocast would have a field in Python compute in another type.
  if (at::autocast::is_autocast_enabled(at::kCPU) || at::autocast::is_autocast_enabled(at::kCUDA)) {
    return false;
  }
  FieldTensors of;
  if (!is_plain(y0) || !is_plain(t) || !read_field(given_layers, number, of)) return false;
  const Tensor& state = THPVariable_Unpack(y0.ptr());
  const Tensor times = times_on_cpu(state, THPVariable_Unpack(t.ptr()));
  std::vector<double> numbers;
  if (!mlp_fits(of, state) || !mlp_times(times, numbers)) return false;
  const bool gradients = wants_gradient(state, times, of);
  if (!request.adaptive() && at::GradMode::is_enabled() && times.requires_grad()) return false;
  if (of.generated) return !gradients || of.generated->vjp;
  const std::vector<LayerTensors>& layers = of.layers;
  if (!state.is_cuda()) return forced || mlp_pays(layers, state, gradients);
  const Tableau& tableau = *mlp_method(request.method).tableau;
  const auto fits = [&](MlpKind kind) { return mlp_fits_on_chip(layers, state, tableau, kind); };
  // Only where it was named while nobody has measured it.
  if (!forced || !fits(request.adaptive() ? MlpKind::kJoint : MlpKind::kFixed)) return false;
  return !gradients || (!request.revolves() && fits(MlpKind::kBackward));
}

}  // namespace

void bind_mlp_takes(py::module_& m) { m.def("mlp_takes", &takes); }

}  // namespace fastnode
