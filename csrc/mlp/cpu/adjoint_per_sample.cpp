#include "mlp/cpu/adjoint_per_sample.h"

#include "mlp/cpu/adjoint_per_sample_worker.h"

namespace fastnode {

template <class T>
void sample_gradient(const MlpField<T>& field, bool by_sample, const SamplePath<T>& path,
                     const T* of_ys, T* gy0, std::vector<std::vector<T>>* parameters, int threads,
                     const Parallel& parallel) {
  const int64_t batch = path.batch, lanes = field.kernels->lanes;
  std::vector<int64_t> starts(size_t(batch) + 1);
  for (int64_t b = 0; b < batch; ++b) {
    starts[size_t(b) + 1] = starts[size_t(b)] + path.accepted[b];
  }
  const auto prepare = [&](int count) {
    if (!parameters) return;
    parameters->assign(size_t(count), std::vector<T>(size_t(field.parameter_numbers())));
  };
  // Which thread takes which samples is fixed, so that sums repeat bit for bit; each gets about the
  // same number of steps, and the first slopes count like one.
  const auto bound = [&](int thread, int count) {
    const int64_t share = (starts.back() + batch) * thread / count;
    int64_t b = 0;
    while (b < batch && starts[size_t(b)] + b < share) ++b;
    return thread == count ? batch : b;
  };
  const auto body = [&](int thread, int count) {
    const int64_t from = bound(thread, count), to = bound(thread + 1, count);
    if (from == to) return;
    const int64_t capacity = by_sample ? to - from : std::min(2 * lanes, to - from);
    SampleAdjoint<T> adjoint(field, make_frame(by_sample, capacity, lanes), path, of_ys, gy0,
                             parameters ? &(*parameters)[size_t(thread)] : nullptr, starts.data(),
                             from, to);
    adjoint.run(capacity);
  };
  threads = by_sample ? 1 : int(std::min<int64_t>(threads, (batch + lanes - 1) / lanes));
  if (threads <= 1) {
    prepare(1);
    body(0, 1);
  } else {
    parallel(threads, prepare, body);
  }
  if (parameters) sum_parts(*parameters);
}

template void sample_gradient<float>(const MlpField<float>&, bool, const SamplePath<float>&,
                                     const float*, float*, std::vector<std::vector<float>>*, int,
                                     const Parallel&);
template void sample_gradient<double>(const MlpField<double>&, bool, const SamplePath<double>&,
                                      const double*, double*, std::vector<std::vector<double>>*,
                                      int, const Parallel&);

}  // namespace fastnode
