// AVX-512: 32 registers of 64 bytes.
#include <cstdint>

#include "mlp/simd/simd_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                        \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi,bmi2"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi,bmi2")
#endif

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

namespace fastnode {
namespace v4 {

constexpr int kBytes = 64, kBlock = 14, kNarrow = 4, kPack = 4;
constexpr bool kFused = true;
constexpr char kName[] = "v4";
// Not in alphabetical order: math-inl.h tests whether it was included.
// clang-format off
#include "mlp/simd/gelu_avx512-inl.h"
#include "mlp/simd/kernel_table-inl.h"
// clang-format on

extern const MlpKernels<float> kFloat = table<float>();
extern const MlpKernels<double> kDouble = table<double>();

}  // namespace v4
}  // namespace fastnode

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
