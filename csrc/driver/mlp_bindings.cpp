// fastnode._C.mlp_solve, which fastnode.engines.fused calls.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <cstring>

#include "driver/bindings.h"
#include "driver/handle.h"
#include "driver/rows.h"
#include "ops/mlp_solve.h"

namespace fastnode {
namespace {

using at::Tensor;
using LayerTuple = std::tuple<py::object, py::object, int64_t>;

bool plain(py::handle x) { return THPVariable_CheckExact(x.ptr()); }

// Finite times, at least two, in one direction.
bool read_times(const Tensor& t, std::vector<double>& times) {
  if (!t.is_cpu() || t.dim() != 1 || t.size(0) < 2 || t.layout() != at::kStrided) return false;
  if (t.scalar_type() != at::kFloat && t.scalar_type() != at::kDouble) return false;
  const int64_t count = t.size(0), stride = t.stride(0);
  times.resize(size_t(count));
  for (int64_t i = 0; i < count; ++i) {
    times[size_t(i)] = t.scalar_type() == at::kFloat ? double(t.const_data_ptr<float>()[i * stride])
                                                     : t.const_data_ptr<double>()[i * stride];
  }
  const bool forward = times.back() > times.front();
  for (size_t i = 0; i < times.size(); ++i) {
    if (!std::isfinite(times[i])) return false;
    if (i > 0 && (forward ? times[i] <= times[i - 1] : times[i] >= times[i - 1])) return false;
  }
  return true;
}

[[noreturn]] void raise_failure(const MlpTrace& trace, const Tensor& y0, int64_t max_num_steps) {
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
  throw std::logic_error("a solve ended without a reason");
}

Tensor numbers(const std::vector<double>& values) {
  const Tensor out = at::empty({int64_t(values.size())}, at::kDouble);
  if (!values.empty()) std::memcpy(out.mutable_data_ptr(), values.data(), out.nbytes());
  return out;
}

using Row = std::pair<std::vector<int>, std::vector<double>>;

// None where the arguments are not plain tensors that fit, or where it does not pay and is not
// `forced`: then other engines say what is wrong, or
// solve it. Otherwise ys, or with `traced` (ys, edges, errors, stiffness, evaluations, rejected,
// the error that ended it or None).
py::object solve(const std::vector<LayerTuple>& layers, int activation, py::handle y0, py::handle t,
                 std::shared_ptr<Tableau> tableau,
                 const std::optional<std::array<double, 9>>& controller, double rtol, double atol,
                 std::optional<double> first_step, int64_t max_num_steps, bool counted_anew,
                 const std::optional<std::tuple<Row, Row, double>>& pair,
                 const std::optional<std::vector<double>>& grid, bool perturb, bool traced,
                 bool throws, int instructions, bool forced) {
  if (!plain(y0) || !plain(t)) return py::none();
  std::vector<LayerTensors> tensors;
  tensors.reserve(layers.size());
  for (const auto& [weight, bias, time_column] : layers) {
    if (!plain(weight) || !(bias.is_none() || plain(bias))) return py::none();
    tensors.push_back({THPVariable_Unpack(weight.ptr()),
                       bias.is_none() ? Tensor() : THPVariable_Unpack(bias.ptr()), time_column});
  }
  const Tensor& state = THPVariable_Unpack(y0.ptr());
  const Tensor& times = THPVariable_Unpack(t.ptr());
  MlpOptions options;
  if (!mlp_fits(tensors, state) || !read_times(times, options.times)) return py::none();
  if (!forced && !mlp_pays(tensors, state)) return py::none();
  const bool timed = at::GradMode::is_enabled() && times.requires_grad();
  options.tableau = tableau;
  options.adaptive = controller.has_value();
  if (controller) {
    const auto [safety, ifactor, dfactor, smallest, least, most, b1, b2, b3] = *controller;
    options.controller = {safety, ifactor, dfactor, smallest, least,
                          most,   b1,      b2,      b3,       tableau->order};
  } else if (timed) {
    return py::none();
  }
  options.rtol = rtol;
  options.atol = atol;
  options.first_step = first_step;
  options.max_num_steps = max_num_steps;
  options.counted_anew = counted_anew;
  if (pair) {
    const auto& [slopes, states, stability] = *pair;
    options.pair =
        StiffnessPair{{slopes.first, slopes.second}, {states.first, states.second}, stability};
  }
  if (grid) options.grid = *grid;
  options.perturb = perturb;
  MlpOutcome outcome;
  {
    const py::gil_scoped_release release;
    outcome = mlp_solve(tensors, Activation(activation), state,
                        timed ? std::optional<Tensor>(times) : std::nullopt, std::move(options),
                        InstructionSet(instructions));
  }
  const MlpTrace& trace = outcome.trace;
  const bool failed = trace.ending != Ending::kFinished;
  if (failed && throws) raise_failure(trace, state, max_num_steps);
  if (!traced) return wrap(outcome.ys);
  return py::make_tuple(wrap(outcome.ys), wrap(numbers(trace.edges)), wrap(numbers(trace.error)),
                        wrap(numbers(trace.stiffness)), trace.evaluations, trace.rejected, failed);
}

}  // namespace

void bind_mlp(py::module_& m) {
  m.def("mlp_solve", &solve);
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
