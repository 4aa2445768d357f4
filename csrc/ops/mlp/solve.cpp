// Solves of MLPs on the CPU, and their gradients.
#include "ops/mlp/solve.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include "mlp/cpu/adjoint_joint.h"

namespace fastnode {
namespace {

using at::Tensor;
using std::optional;

template <class F>
void dispatch_real(at::ScalarType dtype, F&& f) {
  if (dtype == at::kDouble) return f(static_cast<double*>(nullptr));
  f(static_cast<float*>(nullptr));
}

struct Run {
  Tensor ys, kept;
  MlpTrace trace;
};

// The field fits y0.
Run run(const Tensor& y0, FieldTensors given, MlpOptions options, int64_t instructions) {
  if (!given.generated) checked_activation(given.number);
  const FieldTensors of = std::move(given).contiguous();
  const Tensor start = y0.contiguous();
  std::vector<int64_t> shape;
  shape.reserve(size_t(y0.dim()) + 2);
  shape.push_back(int64_t(options.times.size()));
  shape.insert(shape.end(), y0.sizes().begin(), y0.sizes().end());
  const Tensor ys(at::detail::empty_cpu(shape, y0.scalar_type()));
  const int64_t dim = of.dim(y0), batch = y0.numel() / dim, parts = options.parts();
  const int64_t max_num_steps = options.max_num_steps;
  const bool keep = options.keep_states;
  MlpTrace trace;
  Tensor kept;
  dispatch_real(y0.scalar_type(), [&]<class T>(T*) {
    with_field<T>(of, dim, batch, false, instructions, [&](const Field<T>& field) {
      MlpSolve<T> solve(field, batch, std::move(options));
      trace = solve.run(start.const_data_ptr<T>(), ys.mutable_data_ptr<T>(),
                        thread_count(field.multiplications() * batch), parallel);
      if (!keep || trace.ending != Ending::kFinished) return;
      const int64_t steps = int64_t(trace.edges.size()) - 1;
      solve.kept().reserve(steps * parts * y0.numel());
      shape[0] = parts;
      shape.insert(shape.begin(), steps);
      kept =
          at::from_blob(solve.kept().release(), shape, [](void* x) { std::free(x); }, y0.options());
    });
  });
  if (trace.ending != Ending::kFinished) {
    mlp_calls().fail(trace, y0, max_num_steps);
    TORCH_CHECK(false, "a solve ended without a reason");
  }
  return {ys, kept, std::move(trace)};
}

}  // namespace

MlpResult mlp_solve_on_cpu(const Tensor& y0, const Tensor& t, const optional<Tensor>& grid,
                           FieldTensors of, const MlpRequest& request, Tape* tape) {
  TORCH_CHECK_VALUE(mlp_fits(of, y0),
                    "y0 and parameters must be float32 or float64 on the CPU, of one dtype, and "
                    "layers must fit each other and the last dimension of y0");
  MlpOptions options = mlp_options(request, read_times(t), grid);
  options.tape = request.keep ? tape : nullptr;
  auto [ys, kept, trace] = run(y0, std::move(of), std::move(options), request.instructions);
  if (!request.keep) {
    std::vector<int64_t> none = y0.sizes().vec();
    none.insert(none.begin(), {0, request.adaptive() ? 2 : 1});
    kept = at::empty(none, y0.options());
  }
  const Tensor counts = at::empty({2}, at::kLong);
  counts.mutable_data_ptr<int64_t>()[0] = trace.evaluations;
  counts.mutable_data_ptr<int64_t>()[1] = trace.rejected;
  return {ys, step_records(trace), counts, kept};
}

Tensor mlp_solve_states(const Tensor& y0, FieldTensors of, MlpOptions options,
                        int64_t instructions) {
  const at::AutoDispatchBelowADInplaceOrView below;
  return run(y0, std::move(of), std::move(options), instructions).ys;
}

MlpGradientTensors mlp_solve_backward_on_cpu(const MlpSolved& solved, FieldTensors given_field,
                                             const MlpCotangents& given, const Tape* tape) {
  const auto& [request, activation, kept, steps, t] = solved;
  const auto& [of_ys, of_steps, of_parameters, of_times] = given;
  const FieldTensors of = std::move(given_field).contiguous();
  if (!of.generated) checked_activation(activation);
  const int64_t parts = request.adaptive() ? 2 : 1;
  TORCH_CHECK_VALUE(steps.dim() == 2 && steps.size(0) == 3 && steps.is_contiguous() &&
                        steps.scalar_type() == at::kDouble && steps.size(1) > 1,
                    "steps must be those of mlp_solve, got shape ", steps.sizes());
  const bool revolves = request.revolves();
  TORCH_CHECK_VALUE(
      revolves ? request.slots >= 0
               : kept.dim() >= 3 && kept.size(1) == parts && kept.size(0) == steps.size(1) - 1,
      "kept must be that of mlp_solve with keep=True, or y0 with at least 0 slots, "
      "got shape ",
      kept.sizes());
  const Tensor from_kept = kept.contiguous();
  const Tensor gy0 = at::empty(revolves ? kept.sizes() : kept.sizes().slice(2), kept.options());
  TORCH_CHECK_VALUE(mlp_fits(of, gy0), "kept and parameters must fit each other");
  const int64_t dim = of.dim(gy0), batch = gy0.numel() / dim, count = steps.size(1);
  const Tensor upstream = of_ys ? of_ys->to(kept.scalar_type()).contiguous() : Tensor();
  Tensor errors;
  if (of_steps) errors = of_steps->to(at::kDouble).contiguous();
  const double* const records = steps.const_data_ptr<double>();
  const std::vector<double> times = read_times(t);
  TORCH_CHECK_VALUE(!upstream.defined() || upstream.numel() == int64_t(times.size()) * gy0.numel(),
                    "of_ys must have a state for each time, got shape ", of_ys->sizes());
  TORCH_CHECK_VALUE(!errors.defined() || errors.sizes() == steps.sizes(),
                    "of_steps must have the shape of steps, got ", errors.sizes());
  Tensor gt = at::empty({of_times ? int64_t(times.size()) : 0}, at::kDouble);
  std::vector<Tensor> gradients;
  const auto follow = [&]<class T>(T*) {
    MlpPath<T> path{mlp_method(request.method).tableau,
                    times,
                    {records, records + count},
                    request.adaptive(),
                    request.perturb,
                    revolves ? nullptr : from_kept.const_data_ptr<T>(),
                    revolves ? from_kept.const_data_ptr<T>() : nullptr,
                    tape,
                    revolves ? request.slots : 0,
                    records + count + 1,
                    request.rtol,
                    request.atol};
    std::vector<std::vector<T>> sums;
    double* const rates = of_times ? gt.mutable_data_ptr<double>() : nullptr;
    const bool needed = of_parameters || of_times;
    double of_start = 0;
    with_field<T>(of, dim, batch, true, request.instructions, [&](const Field<T>& field) {
      const bool done = mlp_gradient<T>(
          field, batch, path,
          {upstream.defined() ? upstream.const_data_ptr<T>() : nullptr,
           errors.defined() ? errors.const_data_ptr<double>() + count + 1 : nullptr},
          {gy0.mutable_data_ptr<T>(), needed ? &sums : nullptr, rates},
          thread_count(field.multiplications() * batch), parallel);
      if (!done) mlp_calls().interrupt();
      if (!needed) return;
      of_start = unpack_parameters<T>(field, of, sums[0].data(), kept.options(),
                                      of_parameters ? &gradients : nullptr);
    });
    if (!of_times) return;
    // Steps begin at the first time and keep their sizes: outputs are as far into a step as they
    // are from the first time.
    for (size_t i = 0; i < times.size(); ++i) of_start -= rates[i];
    rates[0] += of_start;
  };
  dispatch_real(kept.scalar_type(), follow);
  return {gy0, gt, gradients};
}

MlpCalls& mlp_calls() {
  static MlpCalls* const calls = new MlpCalls();
  return *calls;
}

Tensor step_records(const MlpTrace& trace) {
  const int64_t count = int64_t(trace.edges.size());
  const Tensor out = at::empty({3, count}, at::kDouble);
  double* const to = out.mutable_data_ptr<double>();
  std::fill_n(to, 3 * count, 0.0);
  std::copy(trace.edges.begin(), trace.edges.end(), to);
  std::copy(trace.error.begin(), trace.error.end(), to + count + 1);
  std::copy(trace.stiffness.begin(), trace.stiffness.end(), to + 2 * count + 1);
  return out;
}

}  // namespace fastnode
