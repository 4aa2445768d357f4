// fastnode._C.mlp_solve_samples, which fastnode.engines.per_sample_fused calls.
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <cstring>
#include <limits>

#include "driver/bindings.h"
#include "driver/handle.h"
#include "driver/read_layers.h"
#include "driver/rows.h"
#include "fused/mlp_samples.h"
#include "ops/mlp_solve.h"

namespace fastnode {
namespace {

using at::Tensor;
using Row = std::pair<std::vector<int>, std::vector<double>>;

// Threads do not stop each other: all samples that failed like the first of them are named.
[[noreturn]] void raise_failure(const std::vector<SampleRecord>& records, Failure failure,
                                int64_t max_num_steps) {
  std::vector<int64_t> samples;
  std::vector<double> times, steps;
  const Tensor found = at::full({2}, 0.0, at::kDouble);
  double* const numbers = found.mutable_data_ptr<double>();
  for (size_t b = 0; b < records.size(); ++b) {
    const SampleRecord& each = records[b];
    if (each.failure != failure) continue;
    samples.push_back(int64_t(b));
    times.push_back(each.t);
    steps.push_back(each.h);
    if (each.saw_nan) numbers[0] = std::numeric_limits<double>::quiet_NaN();
    if (each.saw_infinity) numbers[1] = std::numeric_limits<double>::infinity();
  }
  py::list slopes;
  slopes.append(wrap(found));
  py::module_::import("fastnode.engines.failures")
      .attr("raise_failure")(int(failure), samples, times, steps, slopes, max_num_steps);
  throw std::logic_error("a solve ended without a reason");
}

template <class X, class F>
Tensor gather(const std::vector<SampleRecord>& records, at::ScalarType dtype, F of) {
  const Tensor out = at::empty({int64_t(records.size())}, dtype);
  X* to = out.mutable_data_ptr<X>();
  for (const SampleRecord& each : records) *to++ = of(each);
  return out;
}

Tensor joined(const std::vector<SampleRecord>& records, std::vector<double> SampleRecord::* part) {
  int64_t count = 0;
  for (const SampleRecord& each : records) count += int64_t((each.*part).size());
  const Tensor out = at::empty({count}, at::kDouble);
  double* to = out.mutable_data_ptr<double>();
  for (const SampleRecord& each : records) {
    to = std::copy((each.*part).begin(), (each.*part).end(), to);
  }
  return out;
}

// The first fields of fastnode.engines.rows.Trace in their order, status in numbers. None where the
// arguments are not plain tensors that fit, or where it does not pay and is not `forced`. y0 is [B,
// D]; ts [B, T] and the numbers of each sample, [B], are float64 and contiguous.
py::object solve(const std::vector<LayerTuple>& layers, int activation, const Tensor& y0,
                 const Tensor& ts, const Tensor& direction, const Tensor& rtol, const Tensor& atol,
                 std::shared_ptr<Tableau> tableau, const std::array<double, 9>& controller,
                 const std::optional<std::tuple<Row, Row, double>>& pair,
                 const std::optional<Tensor>& first_step, int64_t max_num_steps, bool throws,
                 int instructions, bool forced) {
  std::vector<LayerTensors> tensors;
  if (!read_layers(layers, tensors) || !mlp_fits(tensors, y0)) return py::none();
  if (!forced && !mlp_pays(tensors, y0, false)) return py::none();
  const auto [safety, ifactor, dfactor, smallest, least, most, b1, b2, b3] = controller;
  SampleControl control;
  control.tableau = tableau;
  control.controller = {safety, ifactor, dfactor, smallest, least,
                        most,   b1,      b2,      b3,       tableau->order};
  if (pair) {
    const auto& [slopes, states, stability] = *pair;
    control.pair =
        StiffnessPair{{slopes.first, slopes.second}, {states.first, states.second}, stability};
  }
  control.max_num_steps = max_num_steps;
  control.outputs = ts.size(1);
  control.times = ts.const_data_ptr<double>();
  control.direction = direction.const_data_ptr<double>();
  control.rtol = rtol.const_data_ptr<double>();
  control.atol = atol.const_data_ptr<double>();
  if (first_step) control.first_step = first_step->const_data_ptr<double>();
  const int64_t batch = y0.size(0);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Tensor ys = at::full({control.outputs, batch, y0.size(1)}, nan, y0.options());
  std::vector<SampleRecord> records;
  {
    const py::gil_scoped_release release;
    const std::vector<LayerTensors> plain = contiguous(tensors);
    const Tensor start = y0.contiguous();
    dispatch_real(y0.scalar_type(), [&]<class T>(T*) {
      const MlpKernels<T>* kernels = mlp_kernels<T>(InstructionSet(instructions));
      TORCH_CHECK_VALUE(kernels, "this machine lacks the instruction set asked for");
      const auto given = sources<T>(plain);
      const bool by_sample = MlpSolve<T>::prefers_rows(given, batch, kernels->lanes);
      const MlpField<T> field(given, Activation(activation), by_sample, false, kernels);
      MlpSamples<T> solve(field, by_sample, batch, control);
      solve.run(start.const_data_ptr<T>(), ys.mutable_data_ptr<T>(),
                thread_count(field.multiplications() * batch), parallel);
      records = solve.records();
    });
  }
  std::vector<int> status;
  for (const SampleRecord& each : records) {
    if (throws && each.failure != Failure::kNone) {
      raise_failure(records, each.failure, max_num_steps);
    }
    status.push_back(int(each.failure));
  }
  return py::make_tuple(
      wrap(ys),
      wrap(gather<int64_t>(records, at::kLong, [](const auto& each) { return each.evaluations; })),
      wrap(gather<int64_t>(records, at::kLong,
                           [](const auto& each) { return int64_t(each.t1.size()); })),
      wrap(gather<int64_t>(records, at::kLong, [](const auto& each) { return each.rejected; })),
      status, wrap(joined(records, &SampleRecord::t1)), wrap(joined(records, &SampleRecord::error)),
      wrap(joined(records, &SampleRecord::stiffness)));
}

}  // namespace

void bind_mlp_samples(py::module_& m) { m.def("mlp_solve_samples", &solve); }

}  // namespace fastnode
