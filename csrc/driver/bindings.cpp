#include "driver/bindings.h"

#include <torch/csrc/utils/pybind.h>

#include "driver/adaptive.h"
#include "driver/fixed.h"

namespace fastnode {
namespace {

using Row = std::pair<std::vector<int>, std::vector<double>>;

Weights weights(const Row& row) { return {row.first, row.second}; }

std::shared_ptr<Tableau> make_tableau(int order, bool fsal, std::vector<double> times,
                                      const std::vector<Row>& stages, const Row& solution,
                                      const std::optional<Row>& error,
                                      const std::vector<std::pair<int, std::vector<double>>>& dense,
                                      const std::vector<std::pair<double, Row>>& further) {
  auto tableau = std::make_shared<Tableau>();
  tableau->order = order;
  tableau->fsal = fsal;
  tableau->times = std::move(times);
  for (const Row& row : stages) tableau->stages.push_back(weights(row));
  tableau->solution = weights(solution);
  if (error) tableau->error = weights(*error);
  for (const auto& [stage, coefficients] : dense) tableau->dense.push_back({stage, coefficients});
  for (const auto& [time, row] : further) {
    tableau->further_times.push_back(time);
    tableau->further.push_back(weights(row));
  }
  return tableau;
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
                       double end, const std::array<double, 8>& controller, py::object norm,
                       std::optional<double> first_step, int64_t max_num_steps,
                       const std::vector<std::pair<double, bool>>& stops, py::object on_step,
                       py::object on_accept, py::object on_reject) {
        const auto [safety, ifactor, dfactor, min_step, max_step, b1, b2, b3] = controller;
        std::vector<Stop> sorted;
        for (const auto& [time, jump] : stops) sorted.push_back({time, jump});
        const Controller control{safety, ifactor, dfactor, min_step,      max_step,
                                 b1,     b2,      b3,      tableau->order};
        return std::make_unique<AdaptiveStepper>(field, tableau, t, std::move(y), end, control,
                                                 norm, first_step, max_num_steps, std::move(sorted),
                                                 Callbacks{on_step, on_accept, on_reject});
      }))
      .def("advance",
           [](AdaptiveStepper& self) {
             self.advance();
             return self.last();
           })
      .def("integrate", &AdaptiveStepper::integrate)
      .def_property_readonly("t", &AdaptiveStepper::t)
      .def_property_readonly("y", &AdaptiveStepper::y)
      .def_property_readonly("f", &AdaptiveStepper::f)
      .def_property_readonly("h", &AdaptiveStepper::h)
      .def_property_readonly("evaluations", &AdaptiveStepper::evaluations)
      .def_readwrite("attempts", &AdaptiveStepper::attempts)
      .def_readonly("rejected", &AdaptiveStepper::rejected);

  m.def("integrate_fixed",
        [](py::object field, const Tableau& tableau, at::Tensor y, const std::vector<double>& times,
           const std::vector<double>& grid, bool cubic, bool perturb, py::object on_step) {
          const FixedOutcome outcome =
              integrate_fixed(field, tableau, y, times, grid, cubic, perturb, on_step);
          return std::make_pair(outcome.solution, outcome.evaluations);
        });
}

}  // namespace fastnode
