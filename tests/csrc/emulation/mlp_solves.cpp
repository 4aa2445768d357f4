// Whole solves by the CUDA kernels of perceptrons, launched again while they run out of room.
#include <cuda_runtime.h>

#include <cstring>

#include "mlp/cuda/backward.h"
#include "mlp/cuda/convert.h"

using namespace fastnode;

namespace {

struct Problem {
  // Layers: weight and bias by turns; in, out and the time's column.
  int dtype, kind, layers, activation;
  void** parameters;
  const int* sizes;
  // Method: rows of all stages [all, all], fractions, solution, error, derivatives, states [all],
  // dense [all, degree].
  int stages, further, fsal, order, degree;
  const double *rows, *fractions, *solution, *error, *derivatives, *states, *dense;
  double stability;
  int64_t batch, dim, outputs, max_num_steps, capacity, grid_count;
  int all_together, perturb;
  const void* y0;
  void* ys;
  const double *times, *control, *grid;
  double rtol, atol, first_step;
  const double *rtols, *atols, *directions, *first_steps;
  // Found: [room, rows] of records; states kept [room, ...]; for each row accepted, rejected,
  // evaluations, failure, seen; t, h, ratio. `plan`: samples, groups, blocks, alone, sums_shared,
  // in global memory.
  int64_t room;
  double *ends, *errors, *stiffness;
  void* kept;
  int64_t* counts;
  double* ended;
  int64_t* launches;
  int64_t* plan;
  int global_weights;  // weights in device memory although there is room
  int tensor;          // wide layers by tensor cores
};

// The backward pass: MlpBackTask and, for each layer, the gradients of weight and bias.
struct Way {
  const void *of_ys, *kept;
  const double* edges;
  int64_t steps;
  const int64_t* offsets;
  void* gy0;
  void** gradients;
  double* rates;
  int no_parameters, sums_apart;
};

Weights weights_of(const double* row, int count) {
  Weights weights;
  for (int i = 0; i < count; ++i) {
    if (row[i] == 0) continue;
    weights.stages.push_back(i);
    weights.values.push_back(row[i]);
  }
  return weights;
}

Tableau tableau_of(const Problem& p) {
  const int all = p.stages + p.further;
  Tableau tableau;
  tableau.order = p.order;
  tableau.fsal = p.fsal;
  for (int i = 0; i < all; ++i) {
    (i < p.stages ? tableau.times : tableau.further_times).push_back(p.fractions[i]);
    (i < p.stages ? tableau.stages : tableau.further).push_back(weights_of(p.rows + i * all, all));
    const double* const row = p.dense + i * p.degree;
    if (p.degree > 0) tableau.dense.push_back({i, {row, row + p.degree}});
  }
  tableau.solution = weights_of(p.solution, all);
  tableau.error = weights_of(p.error, all);
  return tableau;
}

// The arguments that solves and backward passes share, and whether the solve fits.
template <class T>
bool tell(const Problem& p, MlpKind kind, MlpTask<T>& task) {
  std::optional<StiffnessPair> pair;
  const int all = p.stages + p.further;
  if (p.stability != 0)
    pair = {weights_of(p.derivatives, all), weights_of(p.states, all), p.stability};
  task.tableau = device_tableau(tableau_of(p), pair).value();
  DeviceField<T>& field = task.field;
  field.count = p.layers;
  field.dim = int(p.dim);
  field.activation = Activation(p.activation);
  for (int l = 0; l < p.layers; ++l) {
    field.layers[l] = {static_cast<T*>(p.parameters[2 * l]),
                       static_cast<T*>(p.parameters[2 * l + 1]),
                       p.sizes[3 * l],
                       p.sizes[3 * l + 1],
                       p.sizes[3 * l + 2],
                       0};
  }
  task.batch = p.batch;
  task.output_count = p.outputs;
  task.times = p.times;
  task.directions = p.directions;
  task.perturb = p.perturb;
  MlpDevice device;
  mlp_device(0, &device);
  device.tensor = device.tensor && p.tensor;
  if (!mlp_plan<T>(kind, field, task.tableau, p.batch, device, task.plan)) return false;
  MlpPlan& plan = task.plan;
  if (p.global_weights && !plan.alone) {
    const bool joint = kind != MlpKind::kPerSample;
    plan.global_weights = true;
    plan.shared = kind == MlpKind::kBackward
                      ? MlpBackMemory<T>().lay(nullptr, field, task.tableau, plan)
                      : MlpMemory<T>().lay(nullptr, field, task.tableau, plan, joint);
  }
  const int64_t found[] = {plan.samples, plan.groups,      plan.blocks,
                           plan.alone,   plan.sums_shared, plan.global_weights};
  std::copy_n(found, 6, p.plan);
  return true;
}

// Weights for all blocks, which must outlive the solve.
template <class T>
std::vector<T> pack(MlpTask<T>& task) {
  std::vector<T> packed(task.plan.global_weights ? task.plan.weights : 0, T(NAN));
  if (task.plan.global_weights) mlp_pack_cuda(task.field, packed.data(), nullptr);
  task.packed = packed.data();
  return packed;
}

template <class T>
int solve(const Problem& p) {
  const auto kind = MlpKind(p.kind);
  const bool per_sample = kind == MlpKind::kPerSample;
  const int64_t rows = per_sample ? p.batch : 1, size = p.batch * p.dim;
  MlpTask<T> task{};
  if (!tell(p, kind, task)) return 1;
  const MlpPlan& plan = task.plan;
  const std::vector<T> packed = pack(task);
  const double* const n = p.control;
  task.y0 = static_cast<const T*>(p.y0);
  task.ys = static_cast<T*>(p.ys);
  task.controller = {n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], p.order};
  task.controller.resolution = Resolution<T>::value;
  task.max_num_steps = p.max_num_steps;
  task.all_together = p.all_together;
  task.rtol = p.rtol;
  task.atol = p.atol;
  task.first_step = p.first_step;
  task.rtols = p.rtols;
  task.atols = p.atols;
  task.first_steps = p.first_steps;
  task.grid = p.grid;
  task.grid_count = p.grid_count;
  task.kept = static_cast<T*>(p.kept);
  if (kind == MlpKind::kFixed) return mlp_fixed_cuda(task, nullptr);
  std::vector<T> y(size), f(size);
  std::vector<MlpState> states(rows);
  std::vector<double> partial(6 * plan.blocks);
  task.y = y.data();
  task.f = f.data();
  task.state = states.data();
  task.partial = partial.data();
  *p.launches = 0;
  for (bool running = true; running; task.resumed = true) {
    unsigned long long arrivals = 0;
    task.arrivals = &arrivals;
    const int64_t base = task.records.base;
    if (base + p.capacity > p.room) return 2;
    task.records = {p.ends + base * rows,
                    p.errors + base * rows,
                    p.stiffness + base * rows,
                    base,
                    p.capacity,
                    rows};
    if (task.kept) task.kept = static_cast<T*>(p.kept) + 2 * base * size;
    const int error =
        per_sample ? mlp_per_sample_cuda(task, nullptr) : mlp_joint_cuda(task, nullptr);
    if (error) return error;
    ++*p.launches;
    running = false;
    for (const MlpState& each : states) running = running || each.control.running;
    task.records.base += p.capacity;
  }
  for (int64_t i = 0; i < rows; ++i) {
    const MlpState& state = states[i];
    const Course& course = state.control.course;
    const bool warned = per_sample ? p.first_steps != nullptr : p.first_step != 0;
    const int64_t counts[] = {course.accepted, course.rejected,
                              evaluations(state, task.tableau, warned), int64_t(state.failure),
                              state.seen};
    std::copy_n(counts, 5, p.counts + 5 * i);
    const double ended[] = {course.t, course.h * course.direction, course.ratio};
    std::copy_n(ended, 3, p.ended + 3 * i);
  }
  return 0;
}

template <class T>
int follow(const Problem& p, const Way& way) {
  MlpBackTask<T> task{};
  if (!tell(p, MlpKind::kBackward, task)) return 1;
  MlpPlan& plan = task.plan;
  if (way.sums_apart && plan.sums_shared) {
    plan.sums_shared = false;
    plan.shared = MlpBackMemory<T>().lay(nullptr, task.field, task.tableau, plan);
  }
  const std::vector<T> packed = pack(task);
  task.adaptive = MlpKind(p.kind) != MlpKind::kFixed;
  task.of_ys = static_cast<const T*>(way.of_ys);
  task.kept = static_cast<const T*>(way.kept);
  task.edges = way.edges;
  task.steps = way.steps;
  task.offsets = way.offsets;
  task.gy0 = static_cast<T*>(way.gy0);
  std::vector<T> sums(plan.blocks * mlp_numbers(task.field), T(NAN));
  std::vector<double> rates(plan.blocks * p.outputs, NAN);
  if (!way.no_parameters) task.sums = sums.data();
  if (way.rates) task.output_rates = rates.data();
  if (const int error = mlp_backward_cuda(task, nullptr)) return error;
  MlpGradientSums<T> totals{task.field, task.sums, task.output_rates, plan.blocks, p.outputs,
                            {},         {},        way.rates};
  for (int l = 0; l < p.layers; ++l) {
    totals.weights[l] = static_cast<T*>(way.gradients[2 * l]);
    totals.biases[l] = static_cast<T*>(way.gradients[2 * l + 1]);
  }
  return mlp_sum_gradients_cuda(totals, nullptr);
}

}  // namespace

extern "C" int mlp_solve_backward(const Problem* problem, const Way* way) {
  return problem->dtype == 0 ? follow<float>(*problem, *way) : follow<double>(*problem, *way);
}

extern "C" int mlp_solve(const Problem* problem) {
  return problem->dtype == 0 ? solve<float>(*problem) : solve<double>(*problem);
}

// Blocks with so many bytes of shared memory that a processor holds.
extern "C" int resident_blocks(int64_t bytes) {
  MlpDevice device;
  mlp_device(0, &device);
  return int(device.blocks(size_t(bytes)));
}

// From now on: see emulation::failing. Returns the error that the runtime has kept.
extern "C" int fail_calls(unsigned failing) {
  emulation::failing = failing;
  return cudaGetLastError();
}
