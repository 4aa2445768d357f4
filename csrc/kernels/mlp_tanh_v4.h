// tanh of float32 by AVX-512, whose permutations read a table of sixteen numbers in one
// instruction: no division, as by way of exp; errors below 1.3 units in the last place. Included by
// mlp_v4.cpp inside its namespace.
//
// |x| in [0, 1/16) and fifteen intervals from there to 9.1, where tanh rounds to one, two for each
// power of two, so that the exponent and the first bit of the mantissa tell which it is. In each a
// polynomial in |x| - center, centers being numbers whose tanh is a float32 to eight more digits or
// so; the rest of the coefficients by weighted least squares on Chebyshev nodes, rounded one after
// the other from the lowest, the others fitted again each time.
#pragma once

#include "kernels/mlp_vector.h"

#define FASTNODE_TANH_BY_TABLE

// The centers, then the coefficients from the lowest, by the last four bits of what tells the
// interval.
constexpr float kTanhTable[8][16] = {
    {0x1.3ff6bcp1f, 0x1.bffdcp1f, 0x1.3ffc3cp2f, 0x1.bff06p2f, 0x1.11a938p3f, 0, 0x1.3ff3f2p-4f,
     0x1.bff782p-4f, 0x1.400ba8p-3f, 0x1.bffda6p-3f, 0x1.400624p-2f, 0x1.c0023cp-2f, 0x1.400dfap-1f,
     0x1.c0081p-1f, 0x1.3ff0e4p0f, 0x1.bff09ap0f},
    {0x1.f92486p-1f, 0x1.ff1124p-1f, 0x1.fff418p-1f, 0x1.ffffc8p-1f, 0x1.fffffep-1f, 0,
     0x1.3f4dc2p-4f, 0x1.be3074p-4f, 0x1.3d7728p-3f, 0x1.b8fac6p-3f, 0x1.35ff1ep-2f, 0x1.a5747ap-2f,
     0x1.1bfe2cp-1f, 0x1.686a62p-1f, 0x1.b249c2p-1f, 0x1.e1f878p-1f},
    {0x1.b3ee98p-6f, 0x1.dd4af4p-9f, 0x1.7d9116p-13f, 0x1.bff73p-19f, 0x1.409082p-23f, 0x1p0f,
     0x1.fce37ap-1f, 0x1.f9eca6p-1f, 0x1.f3b27ep-1f, 0x1.e84308p-1f, 0x1.d113c4p-1f, 0x1.a944f6p-1f,
     0x1.627a08p-1f, 0x1.024a5p-1f, 0x1.1f41ccp-2f, 0x1.d26162p-4f},
    {-0x1.ae16eep-6f, -0x1.dc6acap-9f, -0x1.7d30dep-13f, -0x1.bf8e1ep-19f, -0x1.408ef6p-23f, 0,
     -0x1.3d5d34p-4f, -0x1.b8e52cp-4f, -0x1.35d634p-3f, -0x1.a488c2p-3f, -0x1.19963p-2f,
     -0x1.5e0ff6p-2f, -0x1.893cd8p-2f, -0x1.6ba3d8p-2f, -0x1.e7505ep-3f, -0x1.b706d2p-4f},
    {0x1.16f66p-6f, 0x1.3c272ap-9f, 0x1.f2995ap-14f, 0x1.24b86ap-19f, 0x1.aabb1ap-24f,
     -0x1.555556p-2f, -0x1.4cfa3p-2f, -0x1.452ae8p-2f, -0x1.352b4p-2f, -0x1.183a34p-2f,
     -0x1.c1979p-3f, -0x1.16dc2cp-3f, -0x1.2354fap-6f, 0x1.4f23e6p-4f, 0x1.bbc116p-4f,
     0x1.01d822p-4f},
    {-0x1.07f13ep-7f, -0x1.39f96p-10f, -0x1.f5de3ep-15f, -0x1.26cd5p-20f, -0x1.aae77ap-25f, 0,
     0x1.b68522p-5f, 0x1.285716p-4f, 0x1.8ba486p-4f, 0x1.04efd2p-3f, 0x1.43f80ap-3f, 0x1.5c36c6p-3f,
     0x1.1a5964p-3f, 0x1.f1eb82p-5f, -0x1.9bb066p-7f, -0x1.817ae8p-6f},
    {0x1.7aa186p-9f, 0x1.012152p-11f, 0x1.de1432p-16f, 0x1.193d7ep-21f, 0x1.678b48p-26f,
     0x1.111112p-3f, -0x1.338976p-3f, -0x1.84361ap-3f, 0x1.276ab8p-3f, 0x1.4c38a4p-4f,
     0x1.655f2ap-5f, -0x1.c8184ap-8f, -0x1.bc50d6p-5f, -0x1.e0206ap-5f, -0x1.431746p-6f,
     0x1.c82a2ap-9f},
    {-0x1.6e7be4p-11f, -0x1.496f44p-13f, -0x1.352e5ep-17f, -0x1.6c0732p-23f, -0x1.dcccaep-28f, 0,
     -0x1.b75118p2f, -0x1.5e8bc4p2f, 0x1.a4c06p-2f, -0x1.7f180ep-4f, -0x1.593912p-4f,
     -0x1.13021ap-4f, -0x1.894c82p-6f, 0x1.a364aap-7f, 0x1.ef293ap-7f, 0x1.11d682p-9f},
};

// Masked forms with all lanes: those without a mask make gcc 12 warn of what it did not initialise.
constexpr __mmask16 kAllLanes = 0xFFFF;

// Row after row for a whole pack: a processor does not look far enough ahead to find the next
// vector's operations by itself.
template <int K>
INLINE X<float, K> tanh_by_table(X<float, K> x) {
  __m512 near[K], sum[K];
  __m512i place[K];
  const auto read = [&](int row, int i) INLINE_LAMBDA {
    return _mm512_maskz_permutexvar_ps(kAllLanes, place[i], _mm512_loadu_ps(kTanhTable[row]));
  };
#pragma GCC unroll 8
  for (int i = 0; i < K; ++i) {
    const __m512 all_but_sign = (__m512)magnitude<float, 1>({x.v[i]}).v[0];
    // The second operand is returned where one of them is NaN.
    near[i] = _mm512_maskz_min_ps(kAllLanes, _mm512_set1_ps(9.1f), all_but_sign);
    const __m512 inside = _mm512_maskz_max_ps(kAllLanes, near[i], _mm512_set1_ps(0.05f));
    place[i] = _mm512_maskz_srli_epi32(kAllLanes, _mm512_castps_si512(inside), 22);
  }
#pragma GCC unroll 8
  for (int i = 0; i < K; ++i) near[i] = _mm512_sub_ps(near[i], read(0, i));
#pragma GCC unroll 8
  for (int i = 0; i < K; ++i) sum[i] = read(7, i);
#pragma GCC unroll 8
  for (int row = 6; row > 0; --row) {
#pragma GCC unroll 8
    for (int i = 0; i < K; ++i) sum[i] = _mm512_fmadd_ps(sum[i], near[i], read(row, i));
  }
  return each<V<float>, K>([&](int i) INLINE_LAMBDA {
    const __m512i sign = _mm512_set1_epi32(int32_t(0x80000000));
    // sum | (x & sign)
    return (V<float>)_mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(_mm512_castps_si512(sum[i]), (__m512i)x.v[i], sign, 0xF8));
  });
}
