// The most multiplications with addition of float32 that a core makes, in operations (two each) a
// second: a dozen independent chains, nothing from memory.
#include <chrono>

#if defined(__AVX512F__)
typedef float Vector __attribute__((vector_size(64)));
#elif defined(__AVX__)
typedef float Vector __attribute__((vector_size(32)));
#else
typedef float Vector __attribute__((vector_size(16)));
#endif

extern "C" double fma_peak(double seconds) {
  constexpr int kChains = 12, kRounds = 100000;
  Vector sum[kChains] = {};
  const Vector factor = Vector{} + 0.5f, addend = Vector{} + 1.0f;
  double best = 0, spent = 0;
  while (spent < seconds) {
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < kRounds; ++i) {
#pragma GCC unroll 12
      for (int j = 0; j < kChains; ++j) sum[j] = sum[j] * factor + addend;
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    spent += took.count();
    const double rate = 2.0 * kChains * kRounds * (sizeof(Vector) / sizeof(float)) / took.count();
    best = rate > best ? rate : best;
  }
  Vector total = {};
  for (const Vector& each : sum) total += each;
  return total[0] == 0 ? 0 : best;
}
