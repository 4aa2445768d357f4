// fastnode._C.mlp_solve_samples, which fastnode.engines.fused.per_sample calls.
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <cstring>
#include <limits>

#include "bindings/bindings.h"
#include "bindings/read_layers.h"
#include "driver/handle.h"
#include "driver/python_calls.h"
#include "driver/rows.h"
#include "mlp/cpu/adjoint_per_sample.h"
#include "mlp/cpu/solve_per_sample.h"
#include "ops/mlp/backward_cuda.h"
#include "ops/mlp/solve.h"
#include "ops/mlp/solve_per_sample_cuda.h"

namespace fastnode {
namespace {

using at::Tensor;

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
  py::list derivatives;
  derivatives.append(wrap(found));
  python_calls().raise_failure(int(failure), samples, times, steps, derivatives, max_num_steps);
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

// All samples' numbers behind each other, [steps, 2, dim]; given up one by one.
template <class T>
Tensor joined(std::vector<std::vector<T>>& kept, int64_t dim, const Tensor& y0) {
  int64_t count = 0;
  for (const std::vector<T>& each : kept) count += int64_t(each.size());
  const Tensor out = at::empty({count / (2 * dim), 2, dim}, y0.options());
  T* to = out.mutable_data_ptr<T>();
  for (std::vector<T>& each : kept) {
    to = std::copy(each.begin(), each.end(), to);
    std::vector<T>().swap(each);
  }
  return out;
}

py::tuple solve_on_gpu(const std::vector<LayerTensors>& layers, int activation, const Tensor& y0,
                       const SampleControl& control, bool throws) {
  SampleTensors found;
  {
    const py::gil_scoped_release release;
    found =
        mlp_samples_on_gpu(contiguous(layers), Activation(activation), y0.contiguous(), control);
  }
  for (const SampleRecord& each : found.failed) {
    if (throws && each.failure != Failure::kNone) {
      raise_failure(found.failed, each.failure, control.max_num_steps);
    }
  }
  return py::make_tuple(wrap(found.ys), wrap(found.evaluations), wrap(found.accepted),
                        wrap(found.rejected), wrap(found.status), wrap(found.t1), wrap(found.error),
                        wrap(found.stiffness),
                        control.keep_states ? wrap(found.kept) : py::object(py::none()));
}

// The first fields of fastnode.engines.per_sample_trace.Trace in their order, status in numbers,
// then what gradients need (see MlpSamples::kept), None unless the request keeps it. For arguments
// that are taken: y0 is [B, D]; ts [B, T] and the numbers of each sample, [B], are float64 and
// contiguous. The request's own tolerances and first step are not used.
py::object solve(const py::list& layers, int activation, const Tensor& y0, const Tensor& ts,
                 const Tensor& direction, const Tensor& rtol, const Tensor& atol,
                 const std::optional<Tensor>& first_step, const MlpRequest& request, bool throws) {
  FieldTensors given;
  const bool read = read_field(layers, activation, given);
  TORCH_CHECK_TYPE(read, "layers must be plain tensors");
  const bool on_gpu = y0.is_cuda(), keep = request.keep;
  for (const Tensor& each : {ts, direction, rtol, atol, first_step.value_or(ts)}) {
    TORCH_CHECK_VALUE(each.device() == y0.device(), "numbers of samples must be on ", y0.device(),
                      ", got ", each.device());
  }
  SampleControl control;
  const MlpMethod& method = mlp_method(request.method);
  control.tableau = method.tableau;
  control.pair = method.pair;
  const auto& c = request.controller;
  TORCH_CHECK_VALUE(c.size() == 9, "per-sample stepping needs the nine numbers of a controller");
  control.controller = {c[0], c[1], c[2], c[3], c[4],
                        c[5], c[6], c[7], c[8], control.tableau->order};
  control.max_num_steps = request.max_num_steps;
  control.outputs = ts.size(1);
  control.times = ts.const_data_ptr<double>();
  control.direction = direction.const_data_ptr<double>();
  control.rtol = rtol.const_data_ptr<double>();
  control.atol = atol.const_data_ptr<double>();
  if (first_step) control.first_step = first_step->const_data_ptr<double>();
  control.keep_states = keep;
  if (on_gpu) return solve_on_gpu(given.layers, activation, y0, control, throws);
  const int64_t dim = given.dim(y0), batch = y0.size(0);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Tensor ys = at::full({control.outputs, batch, y0.size(1)}, nan, y0.options());
  std::vector<SampleRecord> records;
  Tensor kept;
  {
    const py::gil_scoped_release release;
    const FieldTensors of = std::move(given).contiguous();
    const Tensor start = y0.contiguous();
    dispatch_real(y0.scalar_type(), [&]<class T>(T*) {
      with_field<T>(of, dim, batch, false, request.instructions, [&](const Field<T>& field) {
        MlpSamples<T> solve(field, batch, control);
        const bool done = solve.run(start.const_data_ptr<T>(), ys.mutable_data_ptr<T>(),
                                    thread_count(field.multiplications() * batch), parallel);
        if (!done) mlp_calls().interrupt();
        records = solve.records();
        if (keep) kept = joined(solve.kept(), dim, y0);
      });
    });
  }
  std::vector<int> status;
  for (const SampleRecord& each : records) {
    if (throws && each.failure != Failure::kNone) {
      raise_failure(records, each.failure, request.max_num_steps);
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
      wrap(joined(records, &SampleRecord::stiffness)), keep ? wrap(kept) : py::object(py::none()));
}

// Whether `solve` takes these arguments, and without `forced` whether it is faster than another
// engine; `keep`: with what gradients need.
bool takes(const py::list& layers, int64_t number, py::handle y0, const std::string& method,
           bool keep, bool forced) {
  FieldTensors of;
  if (!is_plain(y0) || !read_field(layers, number, of)) return false;
  const Tensor& state = THPVariable_Unpack(y0.ptr());
  if (!mlp_fits(of, state)) return false;
  if (of.generated) return !keep || of.generated->vjp;
  const std::vector<LayerTensors>& tensors = of.layers;
  if (!state.is_cuda()) return forced || mlp_pays(tensors, state, keep);
  const Tableau& tableau = *mlp_method(method).tableau;
  const auto fits = [&](MlpKind kind) { return mlp_fits_on_chip(tensors, state, tableau, kind); };
  return forced && fits(MlpKind::kPerSample) && (!keep || fits(MlpKind::kBackward));
}

DeviceGradients backward_on_gpu(const std::vector<LayerTensors>& layers, int activation,
                                const Tensor& of_ys, const Tensor& ts, const Tensor& direction,
                                std::shared_ptr<Tableau> tableau, const Tensor& accepted,
                                const Tensor& t1, const Tensor& kept, bool of_parameters) {
  const Tensor offsets = at::zeros({accepted.numel() + 1}, accepted.options());
  offsets.narrow(0, 1, accepted.numel()).copy_(accepted.cumsum(0));
  const DevicePath path{std::move(tableau), true, false, ts, kept, t1, offsets, direction};
  return mlp_gradients_on_gpu(contiguous(layers), Activation(activation), path, of_ys.contiguous(),
                              of_parameters, false);
}

py::list wrap_all(const std::vector<Tensor>& tensors) {
  py::list all;
  for (const Tensor& each : tensors) all.append(wrap(each));
  return all;
}

// From of_ys [T, B, D] the gradient of y0, and of weights and biases in the order of the layers if
// they are wanted; `kept`, `accepted` and `t1` are those of the solve with `keep`.
py::tuple backward(const py::list& layers, int activation, const Tensor& of_ys, const Tensor& ts,
                   const Tensor& direction, std::shared_ptr<Tableau> tableau,
                   const Tensor& accepted, const Tensor& t1, const Tensor& kept, bool of_parameters,
                   int instructions) {
  FieldTensors given;
  const bool read = read_field(layers, activation, given);
  TORCH_CHECK_TYPE(read, "layers must be plain tensors");
  if (of_ys.is_cuda()) {
    DeviceGradients found;
    {
      const py::gil_scoped_release release;
      found = backward_on_gpu(given.layers, activation, of_ys, ts, direction, tableau, accepted, t1,
                              kept, of_parameters);
    }
    return py::make_tuple(wrap(found.y0), wrap_all(found.parameters));
  }
  Tensor gy0;
  std::vector<Tensor> gradients;
  {
    const py::gil_scoped_release release;
    const FieldTensors of = std::move(given).contiguous();
    const Tensor upstream = of_ys.contiguous();
    gy0 = at::empty(upstream.sizes().slice(1), upstream.options());
    dispatch_real(upstream.scalar_type(), [&]<class T>(T*) {
      const int64_t batch = gy0.size(0), dim = of.dim(gy0);
      with_field<T>(of, dim, batch, true, instructions, [&](const Field<T>& field) {
        const SamplePath<T> path{tableau,
                                 batch,
                                 ts.size(1),
                                 ts.const_data_ptr<double>(),
                                 direction.const_data_ptr<double>(),
                                 accepted.const_data_ptr<int64_t>(),
                                 t1.const_data_ptr<double>(),
                                 kept.const_data_ptr<T>()};
        std::vector<std::vector<T>> sums;
        const bool done =
            sample_gradient<T>(field, path, upstream.const_data_ptr<T>(), gy0.mutable_data_ptr<T>(),
                               of_parameters ? &sums : nullptr,
                               thread_count(field.multiplications() * batch), parallel);
        if (!done) mlp_calls().interrupt();
        if (of_parameters) {
          unpack_parameters<T>(field, of, sums[0].data(), gy0.options(), &gradients);
        }
      });
    });
  }
  return py::make_tuple(wrap(gy0), wrap_all(gradients));
}

}  // namespace

void bind_mlp_samples(py::module_& m) {
  m.def("mlp_takes_samples", &takes);
  m.def("mlp_solve_samples", &solve);
  m.def("mlp_solve_samples_backward", &backward);
}

}  // namespace fastnode
