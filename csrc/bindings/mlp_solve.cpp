// fastnode._C.MlpRequest and mlp_solve, which fastnode.engines.fused.joint calls.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <cstring>

#include "bindings/bindings.h"
#include "bindings/mlp_arguments.h"
#include "bindings/read_layers.h"
#include "bindings/read_tableau.h"
#include "driver/handle.h"
#include "driver/python_calls.h"
#include "driver/rows.h"
#include "mlp/cpu/tile_arithmetic.h"
#include "ops/mlp/solve.h"

namespace fastnode {
namespace {

using at::Tensor;

bool signal_raised() {
  const py::gil_scoped_acquire acquire;
  return PyErr_CheckSignals() != 0;
}

[[noreturn]] void raise_interrupt() {
  const py::gil_scoped_acquire acquire;
  throw py::error_already_set();
}

void raise_failure(const MlpTrace& trace, const Tensor& y0, int64_t max_num_steps) {
  if (trace.ending == Ending::kInterrupted) raise_interrupt();
  const py::gil_scoped_acquire acquire;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  const Tensor found = at::full({2}, 0.0, at::kDouble);
  if (trace.saw_nan) found.mutable_data_ptr<double>()[0] = nan;
  if (trace.saw_infinity) found.mutable_data_ptr<double>()[1] = infinity;
  if (trace.ending == Ending::kBadStart) {
    python_calls().not_finite_at_start(trace.t, wrap(y0.detach()), wrap(found));
  }
  py::list derivatives;
  derivatives.append(wrap(found));
  python_calls().cannot_continue(trace.t, trace.h, trace.attempts, max_num_steps, trace.ratio,
                                 derivatives);
}

void register_method(const std::string& name, std::shared_ptr<Tableau> tableau,
                     const StiffnessRows& pair) {
  register_mlp_method(name, {std::move(tableau), read_pair(pair)});
}

py::object wrap_or_none(const Tensor& x) { return x.defined() ? wrap(x) : py::none(); }

std::vector<Tensor> double_backward(const Tensor& y0, const Tensor& t, at::TensorList parameters,
                                    at::IntArrayRef layout, int64_t activation,
                                    const MlpRequest& request, const Tensor& steps,
                                    const Tensor& of_ys, const Tensor& of_steps) {
  const py::gil_scoped_acquire acquire;
  py::list held;
  for (const Tensor& each : parameters) held.append(wrap(each));
  const py::object found =
      python_calls().double_backward(wrap(y0), wrap(t), held, layout.vec(), activation, request,
                                     wrap(steps), wrap_or_none(of_ys), wrap_or_none(of_steps));
  std::vector<Tensor> out;
  for (const py::handle each : found) {
    out.push_back(each.is_none() ? Tensor() : THPVariable_Unpack(each.ptr()));
  }
  return out;
}

// Of arguments that it takes ys, or for a request that records the results of the op, evaluations
// and rejected steps as numbers, and None for what was kept unless the request asks for it.
py::object solve(const py::list& given_layers, int64_t activation, py::handle state,
                 py::handle given_times, const std::optional<Tensor>& grid,
                 const MlpRequest& request) {
  FieldTensors of;
  // Without the casters of pybind11, which show in the time of a small solve.
  const bool plain =
      is_plain(state) && is_plain(given_times) && read_field(given_layers, activation, of);
  TORCH_CHECK_TYPE(plain, "y0, t and layers must be plain tensors");
  const Tensor &y0 = THPVariable_Unpack(state.ptr()), &t = THPVariable_Unpack(given_times.ptr());
  const Tensor times = times_on_cpu(y0, t);
  // Modes and profilers see what goes through the dispatcher.
  if (!request.record && mlp_runs_directly(y0) && !at::hasCallbacks() &&
      !wants_gradient(y0, times, of)) {
    Tensor ys;
    {
      const py::gil_scoped_release release;
      ys = mlp_solve_states(y0, std::move(of), mlp_options(request, read_times(times), grid),
                            request.instructions);
    }
    return wrap(ys);
  }
  const auto [parameters, layout] = mlp_arguments(of);
  MlpResult result;
  {
    const py::gil_scoped_release release;
    result = call_mlp_solve(y0, times, grid, parameters, layout, activation, request);
  }
  const auto& [ys, steps, counts, kept] = result;
  if (!request.record) return wrap(ys);
  const int64_t* const numbers = counts.const_data_ptr<int64_t>();
  return py::make_tuple(wrap(ys), wrap(steps), numbers[0], numbers[1],
                        wrap_or_none(request.keep ? kept : Tensor()));
}

// f(t, y) by the code of a generated field.
Tensor generated_value(const py::list& held, int64_t number, double t, const Tensor& given,
                       int64_t instructions) {
  FieldTensors of;
  const bool read = read_field(held, number, of);
  TORCH_CHECK_TYPE(read, "a field's tensors must be tensors");
  TORCH_CHECK_VALUE(of.generated && mlp_fits(of, given), "y must fit the field");
  const FieldTensors from = std::move(of).contiguous();
  const Tensor y = given.contiguous(), out = at::empty(y.sizes(), y.options());
  const int64_t dim = from.dim(y), batch = y.numel() / dim;
  dispatch_real(y.scalar_type(), [&]<class T>(T*) {
    with_field<T>(from, dim, batch, false, instructions, [&](const Field<T>& field) {
      const int64_t width = field.tile(batch);
      const Frame largest = field.frame(std::min(width, batch));
      TileArithmetic<T> arithmetic(field, largest, 1);
      const int64_t tile = largest.front() + largest.size(dim);
      Arena memory;
      memory.reserve(2 * Arena::bytes<T>(tile) + Arena::bytes<T>(field.scratch(largest)), true);
      T* const in = memory.take<T>(tile) + largest.front();
      T* const value = memory.take<T>(tile) + largest.front();
      T* const scratch = memory.take<T>(field.scratch(largest));
      for (int64_t first = 0; first < batch; first += width) {
        const Frame frame = field.frame(std::min(width, batch - first));
        arithmetic.load(frame, y.const_data_ptr<T>() + first * dim, in);
        field.value(frame, arithmetic.times(frame, T(t)), in, scratch, value);
        arithmetic.store(frame, value, out.mutable_data_ptr<T>() + first * dim);
      }
    });
  });
  return out;
}

MlpAdjoint adjoint_named(const std::string& name) {
  if (name == "checkpoint") return MlpAdjoint::kCheckpoint;
  if (name == "revolve") return MlpAdjoint::kRevolve;
  // Without gradients it does not matter.
  TORCH_CHECK_VALUE(name == "backprop" || name == "none", "unknown adjoint ", name);
  return MlpAdjoint::kBackprop;
}

}  // namespace

void bind_mlp(py::module_& m) {
  py::class_<MlpRequest>(m, "MlpRequest")
      .def(py::init([](std::string method, double rtol, double atol, std::vector<double> controller,
                       std::optional<double> first_step, int64_t max_num_steps, bool all_together,
                       bool perturb, bool record, bool keep, const std::string& adjoint,
                       std::optional<int64_t> slots, int64_t instructions) {
             return MlpRequest{std::move(method),
                               rtol,
                               atol,
                               std::move(controller),
                               first_step,
                               max_num_steps,
                               all_together,
                               perturb,
                               record,
                               keep,
                               adjoint_named(adjoint),
                               slots.value_or(0),
                               instructions};
           }),
           py::arg("method"), py::arg("rtol") = 0.0, py::arg("atol") = 0.0,
           py::arg("controller") = std::vector<double>(), py::arg("first_step") = py::none(),
           py::arg("max_num_steps") = 0, py::arg("all_together") = false,
           py::arg("perturb") = false, py::arg("record") = false, py::arg("keep") = false,
           py::arg("adjoint") = "backprop", py::arg("slots") = py::none(),
           py::arg("instructions") = 0)
      .def_readonly("method", &MlpRequest::method)
      .def_readonly("rtol", &MlpRequest::rtol)
      .def_readonly("atol", &MlpRequest::atol)
      .def_readonly("perturb", &MlpRequest::perturb)
      .def_property_readonly("adaptive", &MlpRequest::adaptive)
      .def("numbers", &MlpRequest::numbers)
      .def("settings", &MlpRequest::settings);
  m.def("mlp_solve", &solve);
  m.def("mlp_method", &register_method);
  m.def("generated_value", &generated_value);
  m.def("generated_field", [](int64_t value, int64_t vjp, bool twice, std::vector<int64_t> shape,
                              std::vector<int64_t> ends, std::vector<int64_t> sizes,
                              int64_t differentiable, int64_t multiplications) {
    return register_generated({reinterpret_cast<const void*>(value),
                               reinterpret_cast<const void*>(vjp), twice ? at::kDouble : at::kFloat,
                               std::move(shape), std::move(ends), std::move(sizes), differentiable,
                               multiplications});
  });
  mlp_calls().fail = raise_failure;
  mlp_calls().interrupt = raise_interrupt;
  interrupt_question() = signal_raised;
  mlp_calls().double_backward = double_backward;
  m.def("mlp_instruction_sets", [] {
    std::vector<int> found;
    for (int i = 0; i <= int(InstructionSet::kV4); ++i) {
      if (mlp_kernels<float>(InstructionSet(i))) found.push_back(i);
    }
    return found;
  });
  m.def("mlp_activate", [](int instructions, int activation, const Tensor& z) {
    const Tensor in = z.contiguous(), out = at::empty(in.sizes(), in.options());
    const int64_t lanes = 64, count = in.numel();
    dispatch_real(in.scalar_type(), [&]<class T>(T*) {
      std::vector<T> padded(size_t(round_up(count, lanes)));
      std::copy_n(in.const_data_ptr<T>(), count, padded.begin());
      const Extent extent{1, int64_t(padded.size()), int64_t(padded.size())};
      mlp_kernels<T>(InstructionSet(instructions))
          ->activate(Activation(activation), padded.data(), padded.data(), extent);
      std::copy_n(padded.begin(), count, out.mutable_data_ptr<T>());
    });
    return out;
  });
}

}  // namespace fastnode
