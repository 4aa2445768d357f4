// CUDA implementation of `mlp_solve`.
#ifdef FASTNODE_WITH_CUDA

#include <ATen/ops/cat.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "ops/cuda_stream.h"
#include "ops/mlp/device.h"
#include "ops/mlp/solve.h"

namespace fastnode {
namespace {

using at::Tensor;
using std::optional;

// One copy brings all of it to the host: the state and the meetings of blocks, in `kHead` numbers,
// then the records.
constexpr int64_t kStateNumbers = (sizeof(MlpState) + 7) / 8, kHead = kStateNumbers + 1;
// Steps that a launch has room for: all of a common solve, as long as the states that are kept for
// the caller take no more than so many bytes.
constexpr int64_t kRoom = 256, kLeastRoom = 8, kBytesKept = int64_t(1) << 28;

struct Found {
  MlpTrace trace;
  std::vector<Tensor> kept;
};

void read_state(const MlpState& state, const DeviceTableau& tableau, bool told_first,
                int64_t outputs, MlpTrace& trace) {
  const Course& course = state.control.course;
  trace.evaluations = evaluations(state, tableau, told_first);
  trace.rejected = course.rejected;
  trace.t = course.t;
  trace.h = course.h * course.direction;
  trace.ratio = course.ratio;
  trace.attempts = course.attempts;
  trace.saw_nan = state.seen & 1;
  trace.saw_infinity = state.seen & 2;
  if (!state.started) {
    trace.ending = Ending::kBadStart;
  } else if (state.control.next < outputs) {
    trace.ending = Ending::kStuck;
  }
}

// Launches until the solve has come to its end.
template <class T>
Found solve_adaptive(MlpTask<T>& task, const MlpOptions& options, const Tensor& y0, void* stream) {
  const auto numbers = y0.options().dtype(at::kDouble);
  const Tensor saved = at::empty({2, y0.numel()}, y0.options());
  const Tensor partial = at::empty({6 * task.plan.blocks}, numbers);
  std::vector<int64_t> shape = y0.sizes().vec();
  int64_t room = kRoom;
  if (options.keep_states) {
    const int64_t bytes = options.parts() * y0.numel() * int64_t(sizeof(T));
    room = std::min(room, std::max(kLeastRoom, kBytesKept / bytes));
  }
  shape.insert(shape.begin(), {room, options.parts()});
  task.y = saved.mutable_data_ptr<T>();
  task.f = task.y + y0.numel();
  task.partial = partial.mutable_data_ptr<double>();
  task.controller = options.controller;
  task.controller.resolution = Resolution<T>::value;
  task.max_num_steps = options.max_num_steps;
  task.all_together = options.all_together;
  task.rtol = options.rtol;
  task.atol = options.atol;
  task.first_step = options.first_step.value_or(0);
  Found found;
  found.trace.edges.push_back(options.times.front());
  Tensor block;
  MlpState state;
  while (true) {
    const Tensor before = std::exchange(block, at::zeros({kHead + 3 * room}, numbers));
    if (before.defined()) {
      block.narrow(0, 0, kStateNumbers).copy_(before.narrow(0, 0, kStateNumbers));
    }
    double* const place = block.mutable_data_ptr<double>();
    task.state = reinterpret_cast<MlpState*>(place);
    task.arrivals = reinterpret_cast<unsigned long long*>(place + kStateNumbers);
    double* const ends = place + kHead;
    task.records = {ends, ends + room, ends + 2 * room, task.records.base, room, 1};
    if (options.keep_states) {
      found.kept.push_back(at::empty(shape, y0.options()));
      task.kept = found.kept.back().mutable_data_ptr<T>();
    }
    check_launch(mlp_joint_cuda(task, stream));
    const Tensor here = block.cpu();
    const double* const read = here.const_data_ptr<double>();
    state = *reinterpret_cast<const MlpState*>(read);
    const int64_t steps = state.control.course.accepted - task.records.base;
    const double* from = read + kHead;
    MlpTrace& trace = found.trace;
    trace.edges.insert(trace.edges.end(), from, from + steps);
    trace.error.insert(trace.error.end(), from + room, from + room + steps);
    trace.stiffness.insert(trace.stiffness.end(), from + 2 * room, from + 2 * room + steps);
    if (options.keep_states) found.kept.back() = found.kept.back().narrow(0, 0, steps);
    if (!state.control.running) break;
    task.records.base += room;
    task.resumed = true;
  }
  read_state(state, task.tableau, task.first_step != 0, task.output_count, found.trace);
  return found;
}

template <class T>
Found solve_fixed(MlpTask<T>& task, const MlpOptions& options, const Tensor& y0, void* stream) {
  const Tensor grid = upload(options.grid, y0.device());
  task.grid = grid.const_data_ptr<double>();
  task.grid_count = grid.numel();
  task.perturb = options.perturb;
  Found found;
  if (options.keep_states) {
    std::vector<int64_t> shape = y0.sizes().vec();
    shape.insert(shape.begin(), {task.grid_count - 1, 1});
    found.kept.push_back(at::empty(shape, y0.options()));
    task.kept = found.kept.back().mutable_data_ptr<T>();
  }
  check_launch(mlp_fixed_cuda(task, stream));
  found.trace.edges = options.grid;
  found.trace.evaluations = (task.grid_count - 1) * task.tableau.stages;
  return found;
}

// `steps` and `counts` are on the CPU, where the loop's decisions are known in the end anyway.
MlpResult mlp_solve_on_cuda(const Tensor& y0, const Tensor& t, const optional<Tensor>& grid,
                            at::TensorList parameters, at::IntArrayRef layout, int64_t activation,
                            c10::string_view method, at::ArrayRef<double> numbers,
                            at::IntArrayRef settings) {
  const MlpRequest request = MlpRequest::from(method, numbers, settings);
  const Activation function = checked_activation(activation);
  const std::vector<LayerTensors> layers = contiguous(mlp_layers(parameters, layout));
  TORCH_CHECK_VALUE(mlp_fits(layers, y0),
                    "y0 and parameters must be float32 or float64 on one GPU, of one dtype, and "
                    "layers must fit each other and the last dimension of y0");
  const MlpOptions options = mlp_options(request, read_times(t.cpu()), grid);
  void* const stream = current_cuda_stream(y0.device(), "mlp_solve");
  const c10::DeviceGuard guard(y0.device());
  const Tensor start = y0.contiguous(), times = upload(options.times, y0.device());
  std::vector<int64_t> shape = y0.sizes().vec();
  shape.insert(shape.begin(), times.numel());
  const Tensor ys = at::empty(shape, y0.options());
  const auto solve = [&]<class T>(T*) {
    const auto kind = options.adaptive ? MlpKind::kJoint : MlpKind::kFixed;
    MlpTask<T> task =
        make_task<T>(kind, layers, function, *options.tableau, options.pair, start, ys);
    task.times = times.const_data_ptr<double>();
    const Tensor weights = pack_weights(task, start, stream);
    return options.adaptive ? solve_adaptive(task, options, start, stream)
                            : solve_fixed(task, options, start, stream);
  };
  const Found found = y0.scalar_type() == at::kDouble ? solve(static_cast<double*>(nullptr))
                                                      : solve(static_cast<float*>(nullptr));
  if (found.trace.ending != Ending::kFinished) {
    mlp_calls().fail(found.trace, y0, request.max_num_steps);
    TORCH_CHECK(false, "a solve ended without a reason");
  }
  std::vector<int64_t> none = y0.sizes().vec();
  none.insert(none.begin(), {0, options.parts()});
  const Tensor kept = found.kept.empty()       ? at::empty(none, y0.options())
                      : found.kept.size() == 1 ? found.kept[0]
                                               : at::cat(found.kept);
  const Tensor counts = at::empty({2}, at::kLong);
  counts.mutable_data_ptr<int64_t>()[0] = found.trace.evaluations;
  counts.mutable_data_ptr<int64_t>()[1] = found.trace.rejected;
  return {ys, step_records(found.trace), counts, kept};
}

}  // namespace

bool mlp_fits_on_chip(const std::vector<LayerTensors>& layers, const Tensor& y0,
                      const Tableau& tableau, MlpKind kind) {
  const auto method = device_tableau(tableau, {});
  MlpDevice device{};
  check_launch(mlp_device(y0.device().index(), &device));
  const auto fits = [&]<class T>(T*) {
    auto field = device_field<T>(layers, y0.size(-1), Activation::kRelu);
    MlpPlan plan;
    return method && field &&
           mlp_plan<T>(kind, *field, *method, y0.numel() / y0.size(-1), device, plan);
  };
  return y0.scalar_type() == at::kDouble ? fits(static_cast<double*>(nullptr))
                                         : fits(static_cast<float*>(nullptr));
}

TORCH_LIBRARY_IMPL(fastnode, CUDA, m) { m.impl("mlp_solve", mlp_solve_on_cuda); }

}  // namespace fastnode

#endif
