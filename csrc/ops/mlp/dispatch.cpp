// Schemas of `mlp_solve` and `mlp_solve_backward`, and calls of them through the dispatcher.
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/library.h>

#include "ops/mlp/solve.h"

namespace fastnode {
namespace {

using at::Tensor;
using std::optional;

MlpResult solve_cpu(const Tensor& y0, const Tensor& t, const optional<Tensor>& grid,
                    at::TensorList parameters, at::IntArrayRef layout, int64_t activation,
                    c10::string_view method, at::ArrayRef<double> numbers,
                    at::IntArrayRef settings) {
  return mlp_solve_on_cpu(y0, t, grid, FieldTensors::from(parameters, layout, activation),
                          MlpRequest::from(method, numbers, settings), nullptr);
}

MlpGradientTensors backward_cpu(const optional<Tensor>& of_ys, const optional<Tensor>& of_steps,
                                const Tensor& kept, const Tensor& steps, const Tensor& t,
                                at::TensorList parameters, at::IntArrayRef layout,
                                int64_t activation, c10::string_view method,
                                at::ArrayRef<double> numbers, at::IntArrayRef settings,
                                bool of_parameters, bool of_times) {
  const MlpRequest request = MlpRequest::from(method, numbers, settings);
  return mlp_solve_backward_on_cpu({request, activation, kept, steps, t},
                                   FieldTensors::from(parameters, layout, activation),
                                   {of_ys, of_steps, of_parameters, of_times}, nullptr);
}

}  // namespace

bool mlp_runs_directly(const Tensor& y0) {
  return y0.is_cpu() && !y0.unsafeGetTensorImpl()->key_set().has(c10::DispatchKey::Python) &&
         !c10::impl::TorchDispatchModeTLS::any_modes_set();
}

MlpResult call_mlp_solve(const Tensor& y0, const Tensor& t, const optional<Tensor>& grid,
                         at::TensorList parameters, at::IntArrayRef layout, int64_t activation,
                         const MlpRequest& request) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastnode::mlp_solve", "")
                             .typed<decltype(solve_cpu)>();
  return op.call(y0, t, grid, parameters, layout, activation, request.method, request.numbers(),
                 request.settings());
}

MlpGradientTensors call_mlp_solve_backward(const MlpSolved& solved, at::TensorList parameters,
                                           at::IntArrayRef layout, const MlpCotangents& given) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastnode::mlp_solve_backward", "")
                             .typed<decltype(backward_cpu)>();
  return op.call(given.of_ys, given.of_steps, solved.kept, solved.steps, solved.t, parameters,
                 layout, solved.activation, solved.request.method, solved.request.numbers(),
                 solved.request.settings(), given.of_parameters, given.of_times);
}

TORCH_LIBRARY_FRAGMENT(fastnode, m) {
  m.def(
      "mlp_solve(Tensor y0, Tensor t, Tensor? grid, Tensor[] parameters, int[] layout, "
      "int activation, str method, float[] numbers, int[] settings) "
      "-> (Tensor ys, Tensor steps, Tensor counts, Tensor kept)");
  m.def(
      "mlp_solve_backward(Tensor? of_ys, Tensor? of_steps, Tensor kept, Tensor steps, Tensor t, "
      "Tensor[] parameters, int[] layout, int activation, str method, float[] numbers, "
      "int[] settings, bool of_parameters, bool of_times) "
      "-> (Tensor of_y0, Tensor of_t, Tensor[] of_parameters)");
}

TORCH_LIBRARY_IMPL(fastnode, CPU, m) {
  m.impl("mlp_solve", solve_cpu);
  m.impl("mlp_solve_backward", backward_cpu);
}

}  // namespace fastnode
