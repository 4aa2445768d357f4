// fastnode._C.mlp_solve, which fastnode.engines.fused.joint calls.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/record_function.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <cstring>

#include "bindings/bindings.h"
#include "bindings/read_layers.h"
#include "bindings/read_tableau.h"
#include "driver/handle.h"
#include "driver/rows.h"
#include "ops/mlp/solve.h"

namespace fastnode {
namespace {

using at::Tensor;

void raise_failure(const MlpTrace& trace, const Tensor& y0, int64_t max_num_steps) {
  const py::gil_scoped_acquire acquire;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  const Tensor found = at::full({2}, 0.0, at::kDouble);
  if (trace.saw_nan) found.mutable_data_ptr<double>()[0] = nan;
  if (trace.saw_infinity) found.mutable_data_ptr<double>()[1] = infinity;
  const py::module_ errors = py::module_::import("fastnode.errors");
  if (trace.ending == Ending::kBadStart) {
    errors.attr("not_finite_at_start")(trace.t, wrap(y0.detach()), wrap(found));
  }
  py::list slopes;
  slopes.append(wrap(found));
  errors.attr("cannot_continue")(trace.t, trace.h, trace.attempts, max_num_steps, trace.ratio,
                                 slopes);
}

void register_method(const std::string& name, std::shared_ptr<Tableau> tableau,
                     const StiffnessRows& pair) {
  register_mlp_method(name, {std::move(tableau), read_pair(pair)});
}

py::object wrap_or_none(const Tensor& x) { return x.defined() ? wrap(x) : py::none(); }

std::vector<Tensor> replay(const Tensor& y0, const Tensor& t, at::TensorList parameters,
                           at::IntArrayRef layout, int64_t activation, const std::string& method,
                           double rtol, double atol, bool adaptive, bool perturb,
                           const Tensor& steps, const Tensor& of_ys, const Tensor& of_steps) {
  const py::gil_scoped_acquire acquire;
  py::list held;
  for (const Tensor& each : parameters) held.append(wrap(each));
  const py::object found =
      py::module_::import("fastnode.engines.fused.double_backward")
          .attr("gradients")(wrap(y0), wrap(t), held, layout.vec(), activation, method, rtol, atol,
                             adaptive, perturb, wrap(steps), wrap_or_none(of_ys),
                             wrap_or_none(of_steps));
  std::vector<Tensor> out;
  for (const py::handle each : found) {
    out.push_back(each.is_none() ? Tensor() : THPVariable_Unpack(each.ptr()));
  }
  return out;
}

bool wants_gradient(const Tensor& y0, const Tensor& t, const std::vector<LayerTensors>& layers) {
  if (y0.requires_grad() || t.requires_grad()) return true;
  for (const LayerTensors& each : layers) {
    if (each.weight.requires_grad() || (each.bias.defined() && each.bias.requires_grad())) {
      return true;
    }
  }
  return false;
}

std::vector<double> to_numbers(const py::tuple& control) {
  std::vector<double> numbers(control.size());
  for (size_t i = 0; i < numbers.size(); ++i) {
    numbers[i] = PyFloat_AsDouble(PyTuple_GET_ITEM(control.ptr(), i));
  }
  if (PyErr_Occurred()) throw py::error_already_set();
  return numbers;
}

// None where the arguments are not plain tensors that fit, or where it does not pay and is not
// `forced`: then other engines say what is wrong, or solve it. Otherwise ys, or with `traced` the
// results of the op, evaluations and rejected steps as numbers, and None for what was kept unless
// the caller asked for it by `keep`.
py::object solve(const py::list& given_layers, int64_t activation, py::handle y0, py::handle t,
                 const std::string& method, double rtol, double atol, const py::tuple& control,
                 std::optional<double> first_step, int64_t max_num_steps, bool counted_anew,
                 const std::optional<Tensor>& grid, bool perturb, bool traced, bool keep, bool tape,
                 std::optional<int64_t> slots, bool forced, int64_t instructions) {
  std::vector<LayerTensors> layers;
  if (!is_plain(y0) || !is_plain(t) || !read_layers(given_layers, layers)) return py::none();
  const Tensor& state = THPVariable_Unpack(y0.ptr());
  const bool on_gpu = state.is_cuda();
  // Of times on a GPU a copy, which is checked.
  const Tensor given = THPVariable_Unpack(t.ptr());
  const Tensor times = on_gpu && given.is_cuda() ? given.cpu() : given;
  std::vector<double> numbers;
  if (!mlp_fits(layers, state) || !mlp_times(times, numbers)) return py::none();
  const bool graph = at::GradMode::is_enabled() && wants_gradient(state, times, layers);
  if (on_gpu) {
    const Tableau& tableau = *mlp_method(method).tableau;
    const auto fits = [&](MlpKind kind) { return mlp_fits_on_chip(layers, state, tableau, kind); };
    const auto kind = control.empty() ? MlpKind::kFixed : MlpKind::kJoint;
    // By name alone while nobody has measured it.
    if (!forced || !fits(kind)) return py::none();
    if (graph && (slots || !fits(MlpKind::kBackward))) return py::none();
  } else if (!forced && !mlp_pays(layers, state, graph)) {
    return py::none();
  }
  if (control.empty() && at::GradMode::is_enabled() && times.requires_grad()) return py::none();
  const std::vector<double> controller = to_numbers(control);
  // Modes and profilers see what goes through the dispatcher.
  if (!on_gpu && !graph && !traced && !c10::impl::TorchDispatchModeTLS::any_modes_set() &&
      !at::hasCallbacks()) {
    Tensor ys;
    {
      const py::gil_scoped_release release;
      ys = mlp_solve_states(
          state, std::move(layers), activation,
          mlp_options(std::move(numbers), activation, mlp_method(method), rtol, atol, controller,
                      first_step, max_num_steps, counted_anew, grid, perturb, false, false),
          instructions);
    }
    return wrap(ys);
  }
  const auto [parameters, layout] = mlp_arguments(layers);
  MlpResult result;
  {
    const py::gil_scoped_release release;
    result = call_mlp_solve(state, times, parameters, layout, activation, method, rtol, atol,
                            controller, first_step, max_num_steps, counted_anew, grid, perturb,
                            traced, keep, tape, slots, instructions);
  }
  const auto& [ys, steps, counts, kept] = result;
  if (!traced) return wrap(ys);
  const int64_t* const numbers_of = counts.const_data_ptr<int64_t>();
  return py::make_tuple(wrap(ys), wrap(steps), numbers_of[0], numbers_of[1],
                        wrap_or_none(keep ? kept : Tensor()));
}

}  // namespace

void bind_mlp(py::module_& m) {
  m.def("mlp_solve", &solve);
  m.def("mlp_method", &register_method);
  mlp_calls().fail = raise_failure;
  mlp_calls().replay = replay;
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
