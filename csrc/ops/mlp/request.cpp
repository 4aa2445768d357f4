#include "ops/mlp/request.h"

#include <c10/util/Exception.h>

#include <cmath>
#include <limits>

namespace fastnode {
namespace {

constexpr size_t kControllerNumbers = 9, kOwnNumbers = 3, kSettings = 8;

}  // namespace

std::vector<double> MlpRequest::numbers() const {
  std::vector<double> out{rtol, atol,
                          first_step.value_or(std::numeric_limits<double>::quiet_NaN())};
  out.insert(out.end(), controller.begin(), controller.end());
  return out;
}

std::vector<int64_t> MlpRequest::settings() const {
  return {max_num_steps, all_together,     perturb, record,
          keep,          int64_t(adjoint), slots,   instructions};
}

MlpRequest MlpRequest::from(std::string_view method, at::ArrayRef<double> numbers,
                            at::IntArrayRef settings) {
  TORCH_CHECK_VALUE(
      numbers.size() == kOwnNumbers || numbers.size() == kOwnNumbers + kControllerNumbers,
      "numbers must be two tolerances, the first step and none or the nine numbers of a "
      "controller, got ",
      numbers.size());
  TORCH_CHECK_VALUE(settings.size() == kSettings, "settings must be ", kSettings, ", got ",
                    settings.size());
  TORCH_CHECK_VALUE(settings[5] >= 0 && settings[5] <= int64_t(MlpAdjoint::kRevolve),
                    "unknown adjoint ", settings[5]);
  MlpRequest out;
  out.method = std::string(method);
  out.rtol = numbers[0];
  out.atol = numbers[1];
  if (!std::isnan(numbers[2])) out.first_step = numbers[2];
  out.controller = numbers.slice(kOwnNumbers).vec();
  out.max_num_steps = settings[0];
  out.all_together = settings[1] != 0;
  out.perturb = settings[2] != 0;
  out.record = settings[3] != 0;
  out.keep = settings[4] != 0;
  out.adjoint = MlpAdjoint(settings[5]);
  out.slots = settings[6];
  out.instructions = settings[7];
  return out;
}

std::vector<double> read_times(const at::Tensor& t) {
  std::vector<double> times;
  TORCH_CHECK_VALUE(mlp_times(t, times),
                    "t must hold at least two finite times, strictly increasing or decreasing, "
                    "on the CPU");
  return times;
}

bool mlp_times(const at::Tensor& t, std::vector<double>& times) {
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

MlpOptions mlp_options(const MlpRequest& request, std::vector<double> times,
                       const std::optional<at::Tensor>& grid) {
  const MlpMethod& with = mlp_method(request.method);
  MlpOptions options;
  options.tableau = with.tableau;
  options.times = std::move(times);
  options.adaptive = request.adaptive();
  if (options.adaptive) {
    TORCH_CHECK_VALUE(!with.tableau->error.stages.empty(), "method ", request.method,
                      " has no error estimate and takes no controller");
    const auto& c = request.controller;
    options.controller = {c[0], c[1], c[2], c[3], c[4],
                          c[5], c[6], c[7], c[8], with.tableau->order};
  } else {
    TORCH_CHECK_VALUE(grid, "fixed steps need a grid");
    options.grid = read_times(*grid);
    TORCH_CHECK_VALUE(options.grid.front() == options.times.front() &&
                          options.grid.back() == options.times.back(),
                      "grid must begin and end with t");
  }
  options.rtol = request.rtol;
  options.atol = request.atol;
  options.first_step = request.first_step;
  options.max_num_steps = request.max_num_steps;
  options.all_together = request.all_together;
  if (request.record) options.pair = with.pair;
  options.perturb = request.perturb;
  options.keep_states = request.keep;
  return options;
}

}  // namespace fastnode
