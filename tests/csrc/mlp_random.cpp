// Solves and gradients of random perceptrons, for sanitizers to watch: no torch, one thread, each
// instruction set of this machine.
#include <cmath>
#include <cstdio>
#include <random>

#include "mlp/cpu/adjoint_joint.h"
#include "mlp/cpu/adjoint_per_sample.h"
#include "mlp/cpu/field.h"
#include "mlp/cpu/solve_per_sample.h"

using namespace fastnode;

namespace {

std::mt19937 generator(0);

int64_t below(int64_t n) { return int64_t(generator() % uint64_t(n)); }

template <class T>
std::vector<T> random(int64_t count) {
  std::normal_distribution<double> normal(0, 0.5);
  std::vector<T> out(static_cast<size_t>(count));
  for (T& x : out) x = T(normal(generator));
  return out;
}

// Heun's method with Euler's in it, and Bogacki and Shampine's.
std::shared_ptr<Tableau> tableau(bool fsal) {
  auto out = std::make_shared<Tableau>();
  if (fsal) {
    *out = {3,
            true,
            {0, 0.5, 0.75, 1},
            {{{}, {}}, {{0}, {0.5}}, {{1}, {0.75}}, {{0, 1, 2}, {2.0 / 9, 1.0 / 3, 4.0 / 9}}},
            {{0, 1, 2}, {2.0 / 9, 1.0 / 3, 4.0 / 9}},
            {{0, 1, 2, 3}, {-5.0 / 72, 1.0 / 12, 1.0 / 9, -1.0 / 8}},
            {{0, {1, -4.0 / 3, 5.0 / 9}},
             {1, {0, 1, -2.0 / 3}},
             {2, {0, 4.0 / 3, -8.0 / 9}},
             {3, {0, -1, 1}}},
            {{{0, 3}, {0.25, 0.25}}},
            {0.5}};
    out->dense.push_back({4, {0, 1e-3, -1e-3}});
  } else {
    *out = {2,
            false,
            {0, 1},
            {{{}, {}}, {{0}, {1}}},
            {{0, 1}, {0.5, 0.5}},
            {{0, 1}, {0.5, -0.5}},
            {{0, {1, -0.5}}, {1, {0, 0.5}}},
            {},
            {}};
  }
  return out;
}

template <class T>
double sum_of(const MlpField<T>& field, const std::vector<T>& parameters) {
  double total = 0;
  std::vector<T> memory;
  const T* sums = parameters.data();
  for (const auto& layer : field.layers) {
    const T* row = field.gradient_rows(layer, sums, memory);
    for (int64_t m = 0; m < layer.out; ++m, row += field.row_stride(layer)) {
      for (int64_t k = 0; k < layer.depth(); ++k) total += double(row[k]);
    }
    sums += field.gradient_numbers(layer);
  }
  return total;
}

// The sum of a solve where each sample has a span of its own, and of its gradient.
template <class T>
double per_sample(const MlpField<T>& field, const MlpOptions& options, const std::vector<T>& y0) {
  const int64_t dim = field.dim(), batch = int64_t(y0.size()) / dim, outputs = 2 + below(5);
  const std::vector<double> tolerances(size_t(batch), 1e-3);
  std::vector<double> times, direction;
  for (int64_t b = 0; b < batch; ++b) {
    direction.push_back(below(2) ? 1 : -1);
    const double step = direction.back() * double(1 + below(20)) / 50;
    for (int64_t i = 0; i < outputs; ++i) times.push_back(step * double(i));
  }
  SampleControl control;
  control.tableau = options.tableau;
  control.controller = options.controller;
  control.max_num_steps = 1000;
  control.outputs = outputs;
  control.times = times.data();
  control.direction = direction.data();
  control.rtol = control.atol = tolerances.data();
  control.keep_states = true;
  MlpSamples<T> samples(field, batch, control);
  std::vector<T> ys(size_t(outputs * batch * dim), T(NAN));
  const auto alone = [](int, const auto& prepare, const auto& body) {
    prepare(1);
    body(0, 1);
  };
  if (!samples.run(y0.data(), ys.data(), 1, alone)) return NAN;
  std::vector<int64_t> accepted;
  std::vector<double> t1;
  std::vector<T> kept;
  for (size_t b = 0; b < size_t(batch); ++b) {
    const SampleRecord& record = samples.records()[b];
    accepted.push_back(int64_t(record.t1.size()));
    t1.insert(t1.end(), record.t1.begin(), record.t1.end());
    kept.insert(kept.end(), samples.kept()[b].begin(), samples.kept()[b].end());
  }
  const SamplePath<T> path{control.tableau,   batch,           outputs,   control.times,
                           control.direction, accepted.data(), t1.data(), kept.data()};
  std::vector<T> gy0(y0.size());
  std::vector<std::vector<T>> parameters;
  if (!sample_gradient<T>(field, path, ys.data(), gy0.data(), &parameters, 1, alone)) return NAN;
  double total = sum_of(field, parameters[0]);
  for (T x : ys) total += double(x);
  for (T x : gy0) total += double(x);
  return total;
}

template <class T>
bool solve(const MlpKernels<T>* kernels) {
  const int64_t depth = 1 + below(4), batch = 1 + below(80), dim = 1 + below(40);
  std::vector<typename MlpField<T>::Source> sources;
  std::vector<std::vector<T>> memory;
  memory.reserve(size_t(2 * depth));
  int64_t in = dim;
  for (int64_t l = 0; l < depth; ++l) {
    const int64_t out = l + 1 == depth ? dim : 1 + below(70), timed = below(2);
    memory.push_back(random<T>(out * (in + timed)));
    for (T& x : memory.back()) x /= T(std::sqrt(double(in)));
    memory.push_back(random<T>(out));
    const auto& bias = memory.back();
    sources.push_back({in, out, memory[memory.size() - 2].data(), below(2) ? bias.data() : nullptr,
                       timed ? below(in + 1) : -1});
    in = out;
  }
  const Activation activation = Activation(below(kActivations));
  MlpOptions options;
  options.tableau = tableau(below(2));
  options.times = {0, 0.1, 0.35, 0.5};
  options.adaptive = below(3) != 0;
  options.controller = {0.9, 10, 0.2, 1, 0, INFINITY, 1, 0, 0, options.tableau->order};
  options.rtol = options.atol = 1e-3;
  options.max_num_steps = 1000;
  options.keep_states = true;
  options.grid = {0, 0.2, 0.4, 0.5};
  const MlpField<T> field(sources, activation, batch, true, kernels);
  MlpSolve<T> whole(field, batch, options);
  const auto alone = [](int, const auto& prepare, const auto& body) {
    prepare(1);
    body(0, 1);
  };
  const std::vector<T> y0 = random<T>(batch * dim), upstream = random<T>(4 * batch * dim);
  std::vector<T> ys(upstream.size()), gy0(y0.size());
  const MlpTrace trace = whole.run(y0.data(), ys.data(), 1, alone);
  if (trace.ending != Ending::kFinished) return false;
  std::vector<std::vector<T>> parameters;
  std::vector<double> rates(4);
  const std::vector<double> of_errors(trace.edges.size() - 1, 0.5);
  MlpPath<T> path{options.tableau, options.times, trace.edges, options.adaptive, options.perturb};
  path.kept = whole.kept().data();
  path.errors = trace.error.data();
  path.rtol = path.atol = 1e-3;
  const MlpUpstream<T> from{upstream.data(), options.adaptive ? of_errors.data() : nullptr};
  double* const times = options.adaptive ? rates.data() : nullptr;
  bool done = mlp_gradient<T>(field, batch, path, from, {gy0.data(), &parameters, times}, 1, alone);
  // The same without the states, some of which are found again.
  path.y0 = y0.data();
  path.kept = nullptr;
  path.slots = below(6);
  std::vector<T> again(y0.size());
  done = mlp_gradient<T>(field, batch, path, from, {again.data(), &parameters, times}, 1, alone) &&
         done;
  if (!done) return false;
  if (again != gy0) return false;
  double total = per_sample(field, options, y0);
  for (T x : gy0) total += double(x);
  for (T x : ys) total += double(x);
  total += sum_of(field, parameters[0]);
  return std::isfinite(total);
}

}  // namespace

int main() {
  for (int i = 0; i < 60; ++i) {
    for (int which = 0; which <= int(InstructionSet::kV4); ++which) {
      const auto* single = mlp_kernels<float>(InstructionSet(which));
      const auto* twice = mlp_kernels<double>(InstructionSet(which));
      if (single && !(solve(single) && solve(twice))) {
        std::printf("round %d, instruction set %d: not finite\n", i, which);
        return 1;
      }
    }
  }
  return 0;
}
