// AVX2 and fused multiply-add: 16 registers of 32 bytes.
#include <cstdint>

#include "mlp/simd/simd_kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2")
#endif

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

namespace fastnode {
namespace v3 {

constexpr int kBytes = 32, kBlock = 6, kNarrow = 4, kPack = 2;
constexpr bool kFused = true;
constexpr char kName[] = "v3";
#include "mlp/simd/kernel_table-inl.h"

extern const MlpKernels<float> kFloat = table<float>();
extern const MlpKernels<double> kDouble = table<double>();

}  // namespace v3
}  // namespace fastnode

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
