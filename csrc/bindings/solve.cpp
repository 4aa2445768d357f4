#include <ATen/ops/empty.h>
#include <torch/csrc/utils/pybind.h>

#include <cstring>

#include "bindings/bindings.h"
#include "bindings/read_tableau.h"
#include "driver/adams.h"
#include "driver/adaptive.h"
#include "driver/adjoint.h"
#include "driver/fixed.h"
#include "driver/per_sample.h"

namespace fastnode {
namespace {

std::shared_ptr<Tableau> make_tableau(int order, bool fsal, std::vector<double> times,
                                      const std::vector<Row>& stages, const Row& solution,
                                      const std::optional<Row>& error,
                                      const std::vector<std::pair<int, std::vector<double>>>& dense,
                                      const std::vector<std::pair<double, Row>>& further) {
  auto tableau = std::make_shared<Tableau>();
  tableau->order = order;
  tableau->fsal = fsal;
  tableau->times = std::move(times);
  for (const Row& row : stages) tableau->stages.push_back(read_weights(row));
  tableau->solution = read_weights(solution);
  if (error) tableau->error = read_weights(*error);
  for (const auto& [stage, coefficients] : dense) tableau->dense.push_back({stage, coefficients});
  for (const auto& [time, row] : further) {
    tableau->further_times.push_back(time);
    tableau->further.push_back(read_weights(row));
  }
  return tableau;
}

Controller make_controller(const std::array<double, 9>& numbers, int order) {
  const auto [safety, ifactor, dfactor, smallest, min_step, max_step, b1, b2, b3] = numbers;
  return {safety, ifactor, dfactor, smallest, min_step, max_step, b1, b2, b3, order};
}

template <class X>
at::Tensor tensor_of(const std::vector<X>& values, at::IntArrayRef shape, at::ScalarType dtype) {
  const at::Tensor out = at::empty(shape, dtype);
  if (out.nbytes() > 0) std::memcpy(out.mutable_data_ptr(), values.data(), out.nbytes());
  return out;
}

// One after the other: [count] numbers, or rows that follow `shape`.
template <class X>
at::Tensor joined(const std::vector<SampleSteps>& steps, std::vector<X> SampleSteps::* part,
                  at::IntArrayRef shape, at::ScalarType dtype) {
  const at::Tensor out = at::empty(shape, dtype);
  char* to = static_cast<char*>(out.mutable_data_ptr());
  for (const SampleSteps& each : steps) {
    const std::vector<X>& values = each.*part;
    if (values.empty()) continue;
    std::memcpy(to, values.data(), values.size() * sizeof(X));
    to += values.size() * sizeof(X);
  }
  return out;
}

// The fields of fastnode.engines.per_sample_trace.Trace in their order, status in numbers; None if
// the field's results need a graph.
py::object solve_per_sample(py::object problem, const at::Tensor& y0, const at::Tensor& f0,
                            const at::Tensor& ts, const at::Tensor& direction,
                            const at::Tensor& rtol, const at::Tensor& atol,
                            std::shared_ptr<Tableau> tableau,
                            const std::array<double, 9>& controller, const StiffnessRows& pair,
                            std::optional<at::Tensor> first_step, int64_t max_num_steps,
                            bool keep_states, bool keep_derivatives, bool throws) {
  SampleOptions options{tableau,          make_controller(controller, tableau->order),
                        read_pair(pair),  std::move(first_step),
                        max_num_steps,    keep_states,
                        keep_derivatives, throws};
  SampleTrace trace;
  try {
    PerSampleSolve solve(problem, y0, f0, ts, direction, rtol, atol, std::move(options));
    trace = solve.run();
  } catch (const NeedsGraph&) {
    return py::none();
  }
  const int64_t batch = y0.size(0), width = y0.numel() / batch;
  const int64_t stages = int64_t(tableau->stages.size());
  int64_t count = 0;
  for (int64_t each : trace.accepted) count += each;
  py::object states = py::none(), derivatives = py::none();
  const auto dtype = y0.scalar_type();
  if (keep_states) {
    states = wrap(joined(trace.steps, &SampleSteps::states, {count, width}, dtype));
  }
  if (keep_derivatives) {
    derivatives =
        wrap(joined(trace.steps, &SampleSteps::derivatives, {count, stages, width}, dtype));
  }
  return py::make_tuple(
      trace.ys, tensor_of(trace.nfe, {batch}, at::kLong),
      tensor_of(trace.accepted, {batch}, at::kLong), tensor_of(trace.rejected, {batch}, at::kLong),
      trace.status, joined(trace.steps, &SampleSteps::t1, {count}, at::kDouble),
      joined(trace.steps, &SampleSteps::error, {count}, at::kDouble),
      joined(trace.steps, &SampleSteps::stiffness, {count}, at::kDouble), states, derivatives);
}

}  // namespace

void bind_driver(py::module_& m) {
  py::class_<Tableau, std::shared_ptr<Tableau>>(m, "Tableau").def(py::init(&make_tableau));

  py::class_<Step>(m, "Step")
      .def_readonly("t", &Step::t)
      .def_readonly("t1", &Step::t1)
      .def_readonly("y", &Step::y)
      .def_readonly("y1", &Step::y1)
      .def_readonly("k", &Step::k)
      .def_readonly("error", &Step::error)
      .def("at", &Step::at);

  py::class_<AdaptiveStepper>(m, "AdaptiveStepper")
      .def(py::init([](py::object field, std::shared_ptr<Tableau> tableau, double t, at::Tensor y,
                       double end, const std::array<double, 9>& controller, py::object norm,
                       std::optional<double> first_step, int64_t max_num_steps,
                       const std::vector<std::pair<double, bool>>& stops, py::object on_step,
                       py::object on_accept, py::object on_reject) {
        std::vector<Stop> sorted;
        for (const auto& [time, jump] : stops) sorted.push_back({time, jump});
        return std::make_unique<AdaptiveStepper>(
            field, tableau, t, std::move(y), end, make_controller(controller, tableau->order), norm,
            first_step, max_num_steps, std::move(sorted), Callbacks{on_step, on_accept, on_reject});
      }))
      .def("advance",
           [](AdaptiveStepper& self) {
             self.advance();
             return self.last();
           })
      .def("integrate", &AdaptiveStepper::integrate, py::arg("times"),
           py::arg("all_together") = false)
      .def("outputs", &AdaptiveStepper::outputs)
      .def("record",
           [](AdaptiveStepper& self, const StiffnessRows& stiffness_weights) {
             self.record(read_pair(stiffness_weights));
           })
      .def_readonly("ends", &AdaptiveStepper::ends)
      .def_readonly("errors", &AdaptiveStepper::errors)
      .def_property_readonly("stiffness", &AdaptiveStepper::stiffness)
      .def_property_readonly("t", &AdaptiveStepper::t)
      .def_property_readonly("h", &AdaptiveStepper::h)
      .def_property_readonly("evaluations", &AdaptiveStepper::evaluations)
      .def_property_readonly("rejected", &AdaptiveStepper::rejected);

  m.def("solve_per_sample", &solve_per_sample);

  m.def("vjp", &vjp);
  m.def("add_stage", &add_stage);
  m.def("largest_error", &largest_error);

  m.def("integrate_fixed", [](py::object func, const Tableau& tableau, const at::Tensor& y,
                              const std::vector<double>& times, const std::vector<double>& grid,
                              bool cubic, bool perturb, py::object on_step) {
    Field field(func, y);
    RungeKuttaSteps steps(tableau, y, perturb);
    const at::Tensor ys = integrate_fixed(field, steps, y, times, grid, cubic, on_step);
    return std::make_pair(ys, field.evaluations());
  });

  py::class_<AdamsMethod>(m, "AdamsMethod")
      .def(py::init([](std::vector<std::vector<double>> bashforth,
                       std::vector<std::vector<double>> moulton, std::shared_ptr<Tableau> start) {
        const int kept = int(bashforth.size());
        return AdamsMethod{kept, std::move(bashforth), std::move(moulton), std::move(start)};
      }));
  m.def("integrate_adams", [](py::object func, const AdamsMethod& method, const at::Tensor& y,
                              const std::vector<double>& times, const std::vector<double>& grid,
                              bool cubic, bool perturb, py::object on_step, py::object norm,
                              int max_iters, py::object on_failure) {
    Field field(func, y);
    std::optional<AdamsConvergence> convergence;
    if (!norm.is_none()) convergence.emplace(norm, y, field.layout());
    AdamsSteps steps(method, y, perturb, std::move(convergence), max_iters, on_failure);
    const at::Tensor ys = integrate_fixed(field, steps, y, times, grid, cubic, on_step);
    return std::make_pair(ys, field.evaluations());
  });
}

}  // namespace fastnode
