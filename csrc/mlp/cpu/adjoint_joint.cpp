#include "mlp/cpu/adjoint_joint.h"

#include <deque>

#include "mlp/cpu/adjoint_joint_worker.h"

namespace fastnode {

template <class T>
void mlp_gradient(const MlpField<T>& field, bool by_sample, int64_t batch, const MlpPath<T>& path,
                  const MlpUpstream<T>& upstream, const MlpGradients<T>& gradients, int threads,
                  const Parallel& parallel) {
  const int64_t lanes = field.kernels->lanes, width = tile_width(by_sample, batch, lanes);
  const int64_t tiles = (batch + width - 1) / width;
  const auto frame = [&](int64_t tile) {
    return make_frame(by_sample, std::min(width, batch - tile * width), lanes);
  };
  std::vector<std::vector<double>> all_rates;
  std::deque<Adjoint<T>> adjoints;
  std::vector<std::vector<T>>* const parameters = gradients.parameters;
  const auto prepare = [&](int count) {
    if (parameters) {
      parameters->assign(size_t(count), std::vector<T>(size_t(field.parameter_numbers())));
    }
    all_rates.assign(size_t(count), std::vector<double>(path.times.size()));
    // One after the other, as the workers of a solve.
    for (size_t i = 0; i < size_t(count); ++i) {
      adjoints.emplace_back(field, frame(0), batch, path, upstream, gradients.y0,
                            parameters ? &(*parameters)[i] : nullptr,
                            gradients.rates ? &all_rates[i] : nullptr);
    }
  };
  const auto body = [&](int thread, int count) {
    Adjoint<T>& adjoint = adjoints[size_t(thread)];
    for (int64_t i = tiles * thread / count; i < tiles * (thread + 1) / count; ++i) {
      adjoint.tile_back(i * width, frame(i));
    }
  };
  threads = int(std::min<int64_t>(threads, tiles));
  if (threads <= 1) {
    prepare(1);
    body(0, 1);
  } else {
    parallel(threads, prepare, body);
  }
  if (parameters) sum_parts(*parameters);
  if (gradients.rates) {
    std::fill_n(gradients.rates, path.times.size(), 0.0);
    for (const std::vector<double>& part : all_rates) {
      for (size_t j = 0; j < part.size(); ++j) gradients.rates[j] += part[j];
    }
  }
}

template void mlp_gradient<float>(const MlpField<float>&, bool, int64_t, const MlpPath<float>&,
                                  const MlpUpstream<float>&, const MlpGradients<float>&, int,
                                  const Parallel&);
template void mlp_gradient<double>(const MlpField<double>&, bool, int64_t, const MlpPath<double>&,
                                   const MlpUpstream<double>&, const MlpGradients<double>&, int,
                                   const Parallel&);

}  // namespace fastnode
