#include <algorithm>

#include "mlp/cuda/backward.h"

namespace fastnode {
namespace {

// Samples from which a thread each fills a processor: four warps for each of its four schedulers,
// an estimate as the numbers below are.
constexpr int64_t kManySamples = 512;
constexpr int kFewestSamples = 8, kMostOfTile = 32, kEnoughThreads = 256;
// Indices of weights are ints.
constexpr int64_t kMostWeights = int64_t(1) << 30;
// Bytes of device memory for the gradients of all blocks.
constexpr int64_t kSumsBytes = int64_t(1) << 30;

int power_at_least(int64_t n) {
  int power = 1;
  while (power < n) power *= 2;
  return power;
}

// A thread for each kRows features, or for fewer until there are threads enough, by estimate, to
// hide latency.
int groups_for(int samples, int features, int most) {
  int groups = power_at_least((features + kRows - 1) / kRows);
  while (groups < features && samples * groups < kEnoughThreads) groups *= 2;
  while (samples * groups > most) groups /= 2;
  return std::max({groups, 1, 32 / samples});
}

// With the parameters' gradients beside all else, or in device memory. Blocks are no more than the
// device holds at once, as each has gradients of its own, nor than there is memory for these.
template <class T>
bool back_fits(const DeviceField<T>& field, const DeviceTableau& tableau, const MlpDevice& device,
               MlpPlan& plan) {
  for (const bool shared : {true, false}) {
    plan.sums_shared = shared;
    plan.shared = MlpBackMemory<T>().lay(nullptr, field, tableau, plan);
    if (plan.shared > device.shared) continue;
    const size_t by_registers = mlp_back_blocks<T>(plan.global_weights);
    const int resident = int(std::min(device.blocks(plan.shared), by_registers));
    const int64_t room = std::max<int64_t>(kSumsBytes / (mlp_numbers(field) * sizeof(T)), 1);
    plan.blocks = int(std::min<int64_t>({plan.blocks, device.processors * resident, room}));
    return true;
  }
  return false;
}

}  // namespace

template <class T>
bool mlp_plan(MlpKind kind, DeviceField<T>& field, const DeviceTableau& tableau, int64_t batch,
              const MlpDevice& device, MlpPlan& plan) {
  const bool joint = kind == MlpKind::kJoint;
  plan = MlpPlan{};
  plan.most_shared = device.shared;
  int features = field.dim;
  field.widest = 0;
  for (int l = 0; l < field.count; ++l) {
    DeviceLayer<T>& layer = field.layers[l];
    // States of such layers fit nowhere, and no product overflows.
    if (layer.in > 65536 || layer.out > 65536) return false;
    layer.at = int(plan.weights);
    plan.weights += int64_t(padded_rows(layer)) * (padded_inputs(layer) + 2);
    if (plan.weights > kMostWeights) return false;
    if (l + 1 < field.count) field.widest = std::max(field.widest, layer.out);
    features = std::max(features, layer.out);
  }
  const auto fits = [&](int samples, int groups, bool alone) {
    plan.samples = samples;
    plan.groups = groups;
    plan.alone = alone;
    plan.tensor = device.tensor && !alone;
    plan.blocks = int(std::min<int64_t>((batch + samples - 1) / samples, 1 << 30));
    if (kind == MlpKind::kBackward) return back_fits(field, tableau, device, plan);
    plan.shared = MlpMemory<T>().lay(nullptr, field, tableau, plan, kind != MlpKind::kPerSample);
    return plan.shared <= device.shared;
  };
  if (kind == MlpKind::kPerSample && batch >= kManySamples * device.processors &&
      fits(kMlpAloneThreads, 1, true) && device.blocks(plan.shared) >= 2) {
    return true;
  }
  int samples = kFewestSamples;
  const int most = joint ? kMlpJointThreads : kMostOfTile;
  while (samples < most && batch > int64_t(samples) * device.processors) samples *= 2;
  if (joint && batch > int64_t(samples) * device.processors) return false;
  // Fewer samples a block would be more blocks than the device holds at once.
  const int fewest = joint ? samples : kFewestSamples;
  for (const bool global_weights : {false, true}) {
    plan.global_weights = global_weights;
    for (int n = samples; n >= fewest; n /= 2) {
      if (fits(n, groups_for(n, features, joint ? kMlpJointThreads : kMlpIndependentThreads),
               false))
        return true;
    }
  }
  return false;
}

template bool mlp_plan<float>(MlpKind, DeviceField<float>&, const DeviceTableau&, int64_t,
                              const MlpDevice&, MlpPlan&);
template bool mlp_plan<double>(MlpKind, DeviceField<double>&, const DeviceTableau&, int64_t,
                               const MlpDevice&, MlpPlan&);

}  // namespace fastnode
