// fastnode._C.mlp_first_step, which fastnode.engines.fused.first_step calls.
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <limits>

#include "bindings/bindings.h"
#include "bindings/read_layers.h"
#include "driver/handle.h"
#include "driver/rows.h"
#include "mlp/cpu/adjoint_joint.h"
#include "ops/mlp/solve.h"

namespace fastnode {
namespace {

using at::Tensor;

// The first step of a solve from (t, y) to `end`: where it ends, its local error in units of the
// tolerances, and the state and the derivative at which it begins. None where the layers do not
// fit, where it does not pay, or where there is no such step.
py::object step(const py::list& layers, int activation, const Tensor& y, double t, double end,
                const std::string& method, double rtol, double atol, int instructions) {
  FieldTensors given;
  if (!read_field(layers, activation, given) || y.is_cuda() || !mlp_fits(given, y) ||
      !(given.generated || mlp_pays(given.layers, y, true))) {
    return py::none();
  }
  const int64_t dim = given.dim(y), batch = y.numel() / dim;
  MlpTrace trace;
  Tensor kept;
  {
    const py::gil_scoped_release release;
    const FieldTensors of = std::move(given).contiguous();
    const Tensor start = y.contiguous();
    std::vector<int64_t> shape = y.sizes().vec();
    shape.insert(shape.begin(), 2);
    const Tensor ys = at::empty(shape, y.options());
    shape.insert(shape.begin(), 1);
    MlpOptions options;
    options.tableau = mlp_method(method).tableau;
    options.times = {t, end};
    options.first_step_alone = options.keep_states = true;
    options.max_num_steps = 1;
    options.rtol = rtol;
    options.atol = atol;
    options.controller = {
        1, 1, 1, 1, 0, std::numeric_limits<double>::infinity(), 0, 0, 0, options.tableau->order};
    dispatch_real(y.scalar_type(), [&]<class T>(T*) {
      with_field<T>(of, dim, batch, false, instructions, [&](const Field<T>& field) {
        MlpSolve<T> solve(field, batch, std::move(options));
        trace = solve.run(start.const_data_ptr<T>(), ys.mutable_data_ptr<T>(),
                          thread_count(field.multiplications() * batch), parallel);
        if (trace.ending != Ending::kFinished) return;
        solve.kept().reserve(2 * y.numel());
        kept = at::from_blob(
            solve.kept().release(), shape, [](void* x) { std::free(x); }, y.options());
      });
    });
  }
  if (trace.ending == Ending::kInterrupted) mlp_calls().interrupt();
  if (!kept.defined()) return py::none();
  return py::make_tuple(trace.edges[1], trace.error[0], wrap(kept));
}

// The gradients of weights and biases in the order of the layers, given that of the local error.
py::list backward(const py::list& layers, int activation, const Tensor& kept, double t, double t1,
                  const std::string& method, double rtol, double atol, double error,
                  double upstream, bool constant_k1, int instructions) {
  FieldTensors given;
  const bool read = read_field(layers, activation, given);
  TORCH_CHECK_TYPE(read, "layers must be plain tensors");
  std::vector<Tensor> gradients;
  {
    const py::gil_scoped_release release;
    const FieldTensors of = std::move(given).contiguous();
    const Tensor gy = at::empty(kept.sizes().slice(2), kept.options());
    dispatch_real(kept.scalar_type(), [&]<class T>(T*) {
      const int64_t dim = of.dim(gy), batch = gy.numel() / dim;
      with_field<T>(of, dim, batch, true, instructions, [&](const Field<T>& field) {
        MlpPath<T> path;
        path.tableau = mlp_method(method).tableau;
        path.times = path.edges = {t, t1};
        path.constant_k1 = constant_k1;
        path.kept = kept.const_data_ptr<T>();
        path.errors = &error;
        path.rtol = rtol;
        path.atol = atol;
        std::vector<std::vector<T>> sums;
        const bool done = mlp_gradient<T>(field, batch, path, {nullptr, &upstream},
                                          {gy.mutable_data_ptr<T>(), &sums, nullptr},
                                          thread_count(field.multiplications() * batch), parallel);
        if (!done) mlp_calls().interrupt();
        unpack_parameters<T>(field, of, sums[0].data(), gy.options(), &gradients);
      });
    });
  }
  py::list found;
  for (const Tensor& each : gradients) found.append(wrap(each));
  return found;
}

}  // namespace

void bind_mlp_step(py::module_& m) {
  m.def("mlp_first_step", &step);
  m.def("mlp_first_step_backward", &backward);
}

}  // namespace fastnode
