#include "driver/fixed.h"

namespace fastnode {

FixedOutcome integrate_fixed(py::object python_field, const Tableau& tableau, at::Tensor y0,
                             const std::vector<double>& times, const std::vector<double>& grid,
                             bool cubic, bool perturb, const py::object& on_step) {
  Field field(python_field, y0);
  const Arithmetic arithmetic(y0);
  Handle y(y0.contiguous()), stage, end;
  // The stage derivatives; behind them the derivative at the end of the step.
  Slopes k(tableau.stages.size() + 1);
  Outputs outputs(y.tensor(), int64_t(times.size()));
  outputs.add(y.tensor());
  for (size_t i = 0; i + 1 < grid.size(); ++i) {
    const double t = grid[i], t1 = grid[i + 1], h = t1 - t;
    if (!on_step.is_none()) on_step(t, wrap(y.tensor()), h);
    field.release(k[0]);
    field(t, y, perturb ? 1 : 0, k[0]);
    take_stages(field, tableau, arithmetic, t, t1, y.tensor(), k, stage, perturb);
    if (i + 2 == grid.size() && size_t(outputs.size()) + 1 == times.size() && times.back() == t1) {
      // The last state: it needs no memory of its own.
      std::vector<double> c;
      for (double b : tableau.solution.values) c.push_back(h * b);
      outputs.add(arithmetic, y.tensor(), k, tableau.solution.stages, c);
      break;
    }
    arithmetic.combine(y.tensor(), k, tableau.solution, h, end);
    bool derivative_at_end = false;
    for (size_t j;
         (j = size_t(outputs.size())) < times.size() && (t1 - times[j]) * field.direction() >= 0;) {
      if (times[j] == t1) {
        outputs.add(end.tensor());
        continue;
      }
      const double x = (times[j] - t) / h;
      // Between y and y1 = y + h sum_i b_i k_i both interpolants are sums of stage derivatives.
      double rise = x, first = 0, last = 0;
      if (cubic) {
        if (!derivative_at_end) field(t1, end, 0, k.back());
        derivative_at_end = true;
        const double square = x * (1 - x);
        rise = x * x * (3 - 2 * x);
        first = h * square * (1 - x);
        last = -h * square * x;
      }
      std::vector<int> stages = tableau.solution.stages;
      std::vector<double> c;
      for (double b : tableau.solution.values) c.push_back(rise * h * b);
      if (cubic) {
        stages.insert(stages.end(), {0, int(k.size()) - 1});
        c.insert(c.end(), {first, last});
      }
      outputs.add(arithmetic, y.tensor(), k, stages, c);
    }
    std::swap(y, end);
  }
  return {outputs.finish(), field.evaluations()};
}

}  // namespace fastnode
