// Vectors of 16 bytes, which every x86-64 and ARMv8 machine has.
#include <cstdint>

#include "mlp/simd/simd_kernels.h"

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

namespace fastnode {
namespace baseline {

constexpr int kBytes = 16, kBlock = 4, kNarrow = 4, kPack = 2;
constexpr bool kFused = false;
constexpr char kName[] = "baseline";
#include "mlp/simd/kernel_table-inl.h"

extern const MlpKernels<float> kFloat = table<float>();
extern const MlpKernels<double> kDouble = table<double>();

}  // namespace baseline
}  // namespace fastnode
