#include <initializer_list>

#include "mlp/simd/simd_kernels.h"

namespace fastnode {

#if defined(__x86_64__)
namespace v4 {
extern const MlpKernels<float> kFloat;
extern const MlpKernels<double> kDouble;
}  // namespace v4
namespace v3 {
extern const MlpKernels<float> kFloat;
extern const MlpKernels<double> kDouble;
}  // namespace v3
#endif
namespace baseline {
extern const MlpKernels<float> kFloat;
extern const MlpKernels<double> kDouble;
}  // namespace baseline

namespace {

bool has(InstructionSet which) {
#if defined(__x86_64__)
  switch (which) {
    case InstructionSet::kV4:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
             has(InstructionSet::kV3);
    case InstructionSet::kV3:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    case InstructionSet::kBaseline:
      return true;
  }
#endif
  return which == InstructionSet::kBaseline;
}

template <class T>
const MlpKernels<T>* choose(InstructionSet which, const MlpKernels<T>* v4, const MlpKernels<T>* v3,
                            const MlpKernels<T>* baseline) {
  if (!has(which)) return nullptr;
  return which == InstructionSet::kV4 ? v4 : which == InstructionSet::kV3 ? v3 : baseline;
}

}  // namespace

#if defined(__x86_64__)
#define FASTNODE_TABLES(name) &v4::name, &v3::name, &baseline::name
#else
#define FASTNODE_TABLES(name) nullptr, nullptr, &baseline::name
#endif

template <>
const MlpKernels<float>* mlp_kernels<float>(InstructionSet which) {
  return choose<float>(which, FASTNODE_TABLES(kFloat));
}

template <>
const MlpKernels<double>* mlp_kernels<double>(InstructionSet which) {
  return choose<double>(which, FASTNODE_TABLES(kDouble));
}

}  // namespace fastnode
