#include "driver/fixed.h"

namespace fastnode {

RungeKuttaSteps::RungeKuttaSteps(const Tableau& tableau, const at::Tensor& like, bool perturb)
    : tableau_(tableau),
      arithmetic_(like),
      perturb_(perturb),
      k_(tableau.stages.size() + 1),
      rise_(tableau.solution) {}

FixedSteps::Taken RungeKuttaSteps::take(Field& field, double t, double t1, Handle& y) {
  field.release(k_[0]);
  field(t, y, perturb_ ? 1 : 0, k_[0]);
  return take_rest(field, t, t1, y);
}

FixedSteps::Taken RungeKuttaSteps::take_from(const at::Tensor& f, Field& field, double t, double t1,
                                             const Handle& y) {
  k_[0] = f;
  return take_rest(field, t, t1, y);
}

FixedSteps::Taken RungeKuttaSteps::take_rest(Field& field, double t, double t1, const Handle& y) {
  take_stages(field, tableau_, arithmetic_, t, t1, y.tensor(), k_, stage_, perturb_);
  const std::vector<double>& b = tableau_.solution.values;
  for (size_t j = 0; j < b.size(); ++j) rise_.values[j] = (t1 - t) * b[j];
  return {k_, rise_};
}

at::Tensor integrate_fixed(Field& field, FixedSteps& steps, const at::Tensor& y0,
                           const std::vector<double>& times, const std::vector<double>& grid,
                           bool cubic, const py::object& on_step) {
  const Arithmetic arithmetic(y0);
  Handle y(y0.contiguous()), end;
  Outputs outputs(y.tensor(), int64_t(times.size()));
  outputs.add(y.tensor());
  for (size_t i = 0; i + 1 < grid.size(); ++i) {
    const double t = grid[i], t1 = grid[i + 1], h = t1 - t;
    if (!on_step.is_none()) on_step(t, wrap(y.tensor()), h);
    const auto [k, rise] = steps.take(field, t, t1, y);
    if (i + 2 == grid.size() && size_t(outputs.size()) + 1 == times.size() && times.back() == t1) {
      // The last state: it needs no memory of its own.
      outputs.add(arithmetic, y.tensor(), k, rise.stages, rise.values);
      break;
    }
    arithmetic.combine(y.tensor(), k, rise.stages, rise.values.data(), end);
    bool derivative_at_end = false;
    for (size_t j;
         (j = size_t(outputs.size())) < times.size() && (t1 - times[j]) * field.direction() >= 0;) {
      if (times[j] == t1) {
        outputs.add(end.tensor());
        continue;
      }
      const double x = (times[j] - t) / h;
      // Between y and y1 both interpolants are y and a sum of derivatives.
      double part = x, first = 0, last = 0;
      if (cubic) {
        if (!derivative_at_end) field(t1, end, 0, k.back());
        derivative_at_end = true;
        const double square = x * (1 - x);
        part = x * x * (3 - 2 * x);
        first = h * square * (1 - x);
        last = -h * square * x;
      }
      std::vector<int> stages = rise.stages;
      std::vector<double> c;
      for (double each : rise.values) c.push_back(part * each);
      if (cubic) {
        stages.insert(stages.end(), {0, int(k.size()) - 1});
        c.insert(c.end(), {first, last});
      }
      outputs.add(arithmetic, y.tensor(), k, stages, c);
    }
    std::swap(y, end);
  }
  return outputs.finish();
}

}  // namespace fastnode
