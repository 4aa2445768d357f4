// tanh of float32 by AVX-512, whose permutations read a table of sixteen numbers in one
// instruction: no division, as by way of exp; errors below 1.1 units in the last place. Included by
// mlp_v4.cpp inside its namespace.
//
// Sixteen intervals of |x| from 0 to 9.1, where tanh rounds to one: four for each power of two of
// 1 + 1.648 |x|, whose exponent and first two bits of the mantissa tell which it is, so that they
// are narrow where tanh bends. In each a polynomial in |x| - center, centers being numbers whose
// tanh is a float32 to eight more digits or so; the rest of the coefficients by weighted least
// squares on Chebyshev nodes, rounded one after the other from the lowest, the others fitted again
// each time.
#pragma once

#include "kernels/mlp_vector.h"

#define FASTNODE_TANH_BY_TABLE

// The centers, then the coefficients from the lowest, by the last four bits of what tells the
// interval.
constexpr float kTanhTable[7][16] = {
    {0x1.845202p-1f, 0x1.0ffe9cp0f, 0x1.5d8c9ap0f, 0x1.ab4ab4p0f, 0x1.0fee3ap1f, 0x1.5d84p1f,
     0x1.ab3a16p1f, 0x1.f8e16ep1f, 0x1.36bf5cp2f, 0x1.8457ccp2f, 0x1.d1cb7ep2f, 0x1.103388p3f, 0,
     0x1.d206d2p-3f, 0x1.84720cp-2f, 0x1.0fa288p-1f},
    {0x1.47c28ap-1f, 0x1.92bea4p-1f, 0x1.c15ac8p-1f, 0x1.dce4e2p-1f, 0x1.f1955cp-1f, 0x1.fbaafcp-1f,
     0x1.feb5b6p-1f, 0x1.ff9dcp-1f, 0x1.fff01cp-1f, 0x1.fffe98p-1f, 0x1.ffffep-1f, 0x1.fffffep-1f,
     0, 0x1.ca256ep-3f, 0x1.72d398p-2f, 0x1.f1734cp-2f},
    {0x1.2e2eb8p-1f, 0x1.8664b6p-2f, 0x1.d680dcp-3f, 0x1.0f3816p-3f, 0x1.c6d5cp-5f, 0x1.1414c4p-6f,
     0x1.49df8ep-8f, 0x1.88da68p-10f, 0x1.fc8292p-13f, 0x1.68061p-16f, 0x1.0002c6p-19f,
     0x1.718d2cp-23f, 0x1p0f, 0x1.e660bp-1f, 0x1.bcdaf6p-1f, 0x1.872be4p-1f},
    {-0x1.82e34ep-2f, -0x1.33179ap-2f, -0x1.9cf0ccp-3f, -0x1.f93f92p-4f, -0x1.ba031cp-5f,
     -0x1.11b606p-6f, -0x1.48fdbcp-8f, -0x1.887e92p-10f, -0x1.fb04b8p-13f, -0x1.6701dap-16f,
     -0x1.fe9956p-20f, -0x1.c2e0bcp-22f, 0x1.a8d48p-21f, -0x1.b33798p-3f, -0x1.4231dp-2f,
     -0x1.7c0e08p-2f},
    {0x1.71a7c4p-5f, 0x1.bdb888p-4f, 0x1.9b2928p-4f, 0x1.21cad6p-4f, 0x1.15fdp-5f, 0x1.66c72ap-7f,
     0x1.b473a6p-9f, 0x1.054682p-10f, 0x1.52012p-13f, 0x1.dede44p-17f, 0x1.54c03p-20f,
     -0x1.73f6d6p-26f, -0x1.5561a6p-2f, -0x1.139114p-2f, -0x1.67cb3ep-3f, -0x1.30a092p-4f},
    {0x1.8d83ccp-4f, 0x1.eb0e3cp-7f, -0x1.5045a4p-6f, -0x1.944aecp-6f, -0x1.ed79fcp-7f,
     -0x1.5f44d2p-8f, -0x1.b71c06p-10f, -0x1.08f48cp-11f, -0x1.6a9958p-14f, -0x1.00f77cp-17f,
     -0x1.6d7666p-21f, 0x1.20dfd4p-21f, 0x1.b1a0fp-11f, 0x1.0b4f16p-3f, 0x1.57f15ep-3f,
     0x1.46a48p-3f},
    {-0x1.035076p-4f, -0x1.4152dep-5f, -0x1.4e8bb8p-7f, 0x1.347b9ap-9f, 0x1.2316bep-8f,
     0x1.042128p-9f, 0x1.577504p-11f, 0x1.a4b0dcp-13f, 0x1.205828p-15f, 0x1.98046p-19f,
     0x1.1fe784p-22f, 0x1.a56e7p-22f, 0x1.071d48p-3f, 0x1.4b8144p-4f, 0x1.1fe89cp-6f,
     -0x1.208d5ep-5f},
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
    const __m512 stretched = _mm512_fmadd_ps(near[i], _mm512_set1_ps(1.648f), _mm512_set1_ps(1.0f));
    place[i] = _mm512_maskz_srli_epi32(kAllLanes, _mm512_castps_si512(stretched), 21);
  }
#pragma GCC unroll 8
  for (int i = 0; i < K; ++i) near[i] = _mm512_sub_ps(near[i], read(0, i));
#pragma GCC unroll 8
  for (int i = 0; i < K; ++i) sum[i] = read(6, i);
#pragma GCC unroll 8
  for (int row = 5; row > 0; --row) {
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
