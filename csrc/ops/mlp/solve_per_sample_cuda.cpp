#include "ops/mlp/solve_per_sample_cuda.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <c10/core/DeviceGuard.h>

#include <cstddef>
#include <limits>

#include "ops/cuda_stream.h"
#include "ops/mlp/device.h"

namespace fastnode {

#ifdef FASTNODE_WITH_CUDA
namespace {

using at::Tensor;

// Records of accepted steps that a launch has room for, for each sample and in bytes for all.
constexpr int64_t kMostRoom = 256, kLeastRoom = 16, kRecordBytes = int64_t(1) << 29;
// The same of states that are kept.
constexpr int64_t kLeastKept = 8, kBytesKept = int64_t(1) << 28;
static_assert(sizeof(MlpState) % 8 == 0);

// One member of all samples' states.
class States {
 public:
  States(int64_t batch, const at::TensorOptions& numbers)
      : memory_(at::zeros({batch, int64_t(sizeof(MlpState)) / 8}, numbers)) {}

  MlpState* data() const { return reinterpret_cast<MlpState*>(memory_.mutable_data_ptr()); }
  Tensor member(at::ScalarType type, size_t offset) const {
    return memory_.view(type).select(1, int64_t(offset / c10::elementSize(type)));
  }
  Tensor accepted() const { return course(offsetof(Course, accepted)); }
  Tensor rejected() const { return course(offsetof(Course, rejected)); }
  Tensor interpolated() const { return member(at::kLong, offsetof(MlpState, interpolated)); }
  Tensor started() const { return member(at::kByte, offsetof(MlpState, started)).to(at::kLong); }
  Tensor failure() const { return member(at::kInt, offsetof(MlpState, failure)); }
  Tensor running() const {
    return member(at::kByte, offsetof(MlpState, control) + offsetof(Control, running));
  }
  Tensor on_cpu() const { return memory_.cpu(); }

 private:
  Tensor course(size_t offset) const {
    return member(at::kLong, offsetof(MlpState, control) + offsetof(Control, course) + offset);
  }

  Tensor memory_;
};

std::vector<SampleRecord> failures(const States& states) {
  const Tensor copy = states.on_cpu();
  const auto* const all = reinterpret_cast<const MlpState*>(copy.const_data_ptr());
  std::vector<SampleRecord> records(size_t(copy.size(0)));
  for (size_t b = 0; b < records.size(); ++b) {
    const Course& course = all[b].control.course;
    records[b].failure = all[b].failure;
    records[b].t = course.t;
    records[b].h = course.h * course.direction;
    records[b].saw_nan = all[b].seen & 1;
    records[b].saw_infinity = all[b].seen & 2;
  }
  return records;
}

template <class T>
SampleTensors solve(const std::vector<LayerTensors>& layers, Activation activation,
                    const Tensor& y0, const SampleControl& control) {
  void* const stream = current_cuda_stream(y0.device(), "mlp_solve");
  const c10::DeviceGuard guard(y0.device());
  const auto numbers = y0.options().dtype(at::kDouble);
  const int64_t batch = y0.size(0);
  SampleTensors out;
  out.ys = at::full({control.outputs, batch, y0.size(1)}, std::numeric_limits<double>::quiet_NaN(),
                    y0.options());
  MlpTask<T> task = make_task<T>(MlpKind::kPerSample, layers, activation, *control.tableau,
                                 control.pair, y0, out.ys);
  const Tensor weights = pack_weights(task, y0, stream);
  const Tensor saved = at::empty({2, y0.numel()}, y0.options());
  const States states(batch, numbers);
  task.times = control.times;
  task.y = saved.mutable_data_ptr<T>();
  task.f = task.y + y0.numel();
  task.state = states.data();
  task.controller = control.controller;
  task.controller.resolution = Resolution<T>::value;
  task.max_num_steps = control.max_num_steps;
  task.rtols = control.rtol;
  task.atols = control.atol;
  task.directions = control.direction;
  task.first_steps = control.first_step;
  int64_t room = std::clamp(kRecordBytes / (24 * batch), kLeastRoom, kMostRoom);
  const int64_t bytes = 2 * y0.numel() * int64_t(sizeof(T));
  if (control.keep_states) room = std::min(room, std::max(kLeastKept, kBytesKept / bytes));
  std::vector<Tensor> records, kept;
  bool failed = false;
  while (true) {
    const Tensor& here = records.emplace_back(at::empty({3, room, batch}, numbers));
    double* const to = here.mutable_data_ptr<double>();
    task.records = {to, to + room * batch, to + 2 * room * batch, task.records.base, room, batch};
    if (control.keep_states) {
      kept.push_back(at::empty({room, 2, batch, y0.size(1)}, y0.options()));
      task.kept = kept.back().mutable_data_ptr<T>();
    }
    check_launch(mlp_per_sample_cuda(task, stream));
    const Tensor flags =
        at::stack({states.running().ne(0).any().to(at::kLong),
                   states.failure().ne(0).any().to(at::kLong), states.accepted().max()})
            .cpu();
    const int64_t* const numbers_of = flags.const_data_ptr<int64_t>();
    failed = numbers_of[1] != 0;
    if (numbers_of[0] == 0) {
      const int64_t rest = std::max<int64_t>(numbers_of[2] - task.records.base, 0);
      if (control.keep_states) kept.back() = kept.back().narrow(0, 0, rest);
      break;
    }
    task.records.base += room;
    task.resumed = true;
    room *= 2;
  }
  out.accepted = states.accepted().clone();
  out.rejected = states.rejected().clone();
  out.evaluations = (out.accepted + out.rejected) * (task.tableau.stages - 1) +
                    states.interpolated() * task.tableau.further + 1;
  if (!control.first_step) out.evaluations += states.started();
  const Tensor all = (records.size() == 1 ? records[0] : at::cat(records, 1)).transpose(1, 2);
  const Tensor taken =
      at::arange(all.size(2), out.accepted.options()).unsqueeze(0) < out.accepted.unsqueeze(1);
  out.t1 = all.select(0, 0).masked_select(taken);
  out.error = all.select(0, 1).masked_select(taken);
  out.stiffness = all.select(0, 2).masked_select(taken);
  if (control.keep_states) out.kept = kept.size() == 1 ? kept[0] : at::cat(kept);
  out.status = states.failure().to(at::kChar);
  if (failed) out.failed = failures(states);
  return out;
}

}  // namespace

SampleTensors mlp_samples_on_gpu(const std::vector<LayerTensors>& layers, Activation activation,
                                 const Tensor& y0, const SampleControl& control) {
  if (y0.scalar_type() == at::kDouble) return solve<double>(layers, activation, y0, control);
  return solve<float>(layers, activation, y0, control);
}
#else
SampleTensors mlp_samples_on_gpu(const std::vector<LayerTensors>&, Activation, const at::Tensor&,
                                 const SampleControl&) {
  TORCH_CHECK(false, "fastnode._C was built without CUDA");
}
#endif

}  // namespace fastnode
