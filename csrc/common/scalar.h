// Scalar types of the CPU kernels: 16-bit floats as plain bit patterns with branch-free conversions
// that compilers vectorise, and the type in which each is computed.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#if defined(__CUDACC__)
#define FASTNODE_HD __host__ __device__ __forceinline__
#else
#define FASTNODE_HD inline __attribute__((always_inline))
#endif

// One binary for every x86-64: leaf loops are compiled for three instruction sets and the loader
// picks one. -march=native would make a wheel that crashes on an older machine.
#if defined(__x86_64__) && defined(__linux__) && !defined(FASTNODE_SINGLE_ISA)
#define FASTNODE_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FASTNODE_CLONES
#endif

namespace fastnode {

template <class To, class From>
FASTNODE_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

FASTNODE_HD float load(float x) { return x; }
FASTNODE_HD double load(double x) { return x; }
FASTNODE_HD float load(BFloat16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }

// Normal numbers by shifting and rescaling the exponent, subnormals by a subtraction that the
// hardware normalises; a select instead of a branch, so that the loop stays vector code.
FASTNODE_HD float load(Half x) {
  const uint32_t wide = uint32_t(x.bits) << 16;
  const uint32_t sign = wide & 0x80000000u;
  const uint32_t twice = wide + wide;
  const float normal = bit_cast<float>((twice >> 4) + (0xE0u << 23)) * 0x1.0p-112f;
  const float subnormal = bit_cast<float>((twice >> 17) | (126u << 23)) - 0.5f;
  const uint32_t magnitude =
      twice < (1u << 27) ? bit_cast<uint32_t>(subnormal) : bit_cast<uint32_t>(normal);
  return bit_cast<float>(sign | magnitude);
}

template <class T>
FASTNODE_HD T store(float x);
template <class T>
FASTNODE_HD T store(double x);

template <>
FASTNODE_HD float store<float>(float x) {
  return x;
}
template <>
FASTNODE_HD double store<double>(double x) {
  return x;
}

// Round to nearest even; NaN stays NaN (its payload does not).
template <>
FASTNODE_HD BFloat16 store<BFloat16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  return {uint16_t(nan ? 0x7FC0u : rounded)};
}

// Scaling up and down again overflows to infinity what half cannot hold; adding a power of two that
// depends on the exponent makes the hardware round at the right bit, subnormals included.
template <>
FASTNODE_HD Half store<Half>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t twice = bits + bits;
  const uint32_t sign = bits & 0x80000000u;
  const float magnitude = bit_cast<float>(bits & 0x7FFFFFFFu);
  const float scaled = (magnitude * 0x1.0p+112f) * 0x1.0p-110f;
  uint32_t bias = twice & 0xFF000000u;
  bias = bias < 0x71000000u ? 0x71000000u : bias;
  const uint32_t sum = bit_cast<uint32_t>(bit_cast<float>((bias >> 1) + 0x07800000u) + scaled);
  const uint32_t finite = ((sum >> 13) & 0x7C00u) + (sum & 0x0FFFu);
  return {uint16_t((sign >> 16) | (twice > 0xFF000000u ? 0x7E00u : finite))};
}

// Elements written at once by stream_block, and the bytes an op must touch for that to pay.
//
// An ordinary store first reads the line it writes, and pushes other data out of the cache. On two
// cores with 32 MiB of L3, two inputs and two outputs of 16 MiB each took 2.0 ms with ordinary
// stores and 0.6 to 1.3 ms past the cache; tensors that fit the cache are faster with ordinary
// ones.
constexpr int kBlock = 64;
constexpr int64_t kStreamBytes = int64_t(32) << 20;

// Copies kBlock elements past the cache; `to` is aligned to 16 bytes.
template <class T>
FASTNODE_HD void stream_block(T* to, const T* from) {
#if defined(__SSE2__) && !defined(__CUDA_ARCH__)
  for (size_t byte = 0; byte < kBlock * sizeof(T); byte += 16) {
    const char* source = reinterpret_cast<const char*>(from) + byte;
    char* target = reinterpret_cast<char*>(to) + byte;
    _mm_stream_si128(reinterpret_cast<__m128i*>(target),
                     _mm_load_si128(reinterpret_cast<const __m128i*>(source)));
  }
#else
  memcpy(to, from, kBlock * sizeof(T));
#endif
}

template <class T>
FASTNODE_HD bool streamable(const T* to) {
  return reinterpret_cast<uintptr_t>(to) % 16 == 0;
}

// The type in which values of T are combined and summed.
template <class T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <class T>
using acc_t = typename Accumulate<T>::type;

}  // namespace fastnode
