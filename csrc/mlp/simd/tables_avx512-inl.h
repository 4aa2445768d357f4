// -inl: included once for each instruction set, in its namespace (kernel_table-inl.h).
// Activations of float32 by AVX-512, whose permutations read a table of sixteen numbers in one
// instruction: no exp, no division; errors below 1.4 units in the last place. Included by
// avx512.cpp inside its namespace.
//
// Each has sixteen intervals of |x|, selected by the exponent and the first bits of the mantissa of
// a number made from it, and in each a polynomial in |x| - center, centers being numbers whose
// value is a float32 to four more digits or so; the rest of the coefficients by weighted least
// squares on Chebyshev nodes, rounded one after the other from the lowest, the others fitted again
// each time.
//
// Where tables end before the function does, a pack with numbers beyond takes these from another
// formula, and the rest from the table nevertheless: no number's value depends on its neighbours.
#pragma once

#include "mlp/simd/vector-inl.h"

#define FASTNODE_BY_TABLE

// The centers, then the coefficients from the lowest, by the last four bits of what selects the
// interval.
//
// tanh from 0 to 9.1, where it rounds to one: four intervals for each power of two of
// 1 + 1.648 |x|, narrow where tanh bends.
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

// 1 / (1 + exp(|x|)) from 0 to 12: eight intervals for each power of two of 4 + |x|.
constexpr float kLogisticTable[8][16] = {
    {0x1.1ff3fep2f, 0x1.5fff7ep2f, 0x1.a00014p2f, 0x1.dff814p2f, 0x1.0fffb4p3f, 0x1.2ffcb8p3f,
     0x1.50255ep3f, 0x1.6fe762p3f, 0x1.ff09bp-3f, 0x1.80169p-1f, 0x1.400dfap0f, 0x1.bff0dp0f,
     0x1.20155cp1f, 0x1.600224p1f, 0x1.a01a88p1f, 0x1.e00a2p1f},
    {0x1.6847fcp-7f, 0x1.0abfbp-8f, 0x1.898628p-10f, 0x1.21f48ep-11f, 0x1.aaa1fcp-13f,
     0x1.3a0db8p-14f, 0x1.cbdeaep-16f, 0x1.54edd6p-17f, 0x1.c0731ep-2f, 0x1.487b8cp-2f,
     0x1.c803a8p-3f, 0x1.2f42b2p-3f, 0x1.865238p-4f, 0x1.ec331ap-5f, 0x1.318b2ap-5f,
     0x1.7858fcp-6f},
    {-0x1.6451e6p-7f, -0x1.09a9cp-8f, -0x1.88eef4p-10f, -0x1.21cb86p-11f, -0x1.aa8bcap-13f,
     -0x1.3a07bap-14f, -0x1.cbdb7cp-16f, -0x1.54ecfap-17f, -0x1.f81caep-3f, -0x1.be38aep-3f,
     -0x1.627a08p-3f, -0x1.025ad4p-3f, -0x1.61204ep-4f, -0x1.cea076p-5f, -0x1.2625c2p-5f,
     -0x1.6fb3e6p-6f},
    {0x1.5c7c0cp-8f, 0x1.078016p-9f, 0x1.87c0d6p-11f, 0x1.217964p-12f, 0x1.aa5f3ap-14f,
     0x1.39fb96p-15f, 0x1.cbd4ecp-17f, 0x1.54eb0ep-18f, 0x1.f491ecp-7f, 0x1.3fe164p-5f,
     0x1.893cd8p-5f, 0x1.6baf4p-5f, 0x1.1dd33ap-5f, 0x1.9708ecp-6f, 0x1.103494p-6f, 0x1.5ecf66p-7f},
    {-0x1.bc19d2p-10f, -0x1.599728p-11f, -0x1.0395e4p-12f, -0x1.8116ecp-14f, -0x1.1c005ep-15f,
     -0x1.a27df2p-17f, -0x1.3280bp-18f, -0x1.c6832ap-20f, 0x1.4089e6p-6f, 0x1.6da4dep-7f,
     0x1.2355c2p-10f, -0x1.4ef3f2p-8f, -0x1.c6925p-8f, -0x1.97d532p-8f, -0x1.33b55p-8f,
     -0x1.a840c6p-9f},
    {0x1.9403acp-12f, 0x1.4e41ccp-13f, 0x1.0080bp-14f, 0x1.7f70cp-16f, 0x1.1b975p-17f,
     0x1.a251e2p-19f, 0x1.327942p-20f, 0x1.c698eep-22f, -0x1.45fc78p-9f, -0x1.584e5cp-8f,
     -0x1.1a5a76p-8f, -0x1.f250fap-10f, -0x1.a55db2p-14f, 0x1.5dd3a8p-11f, 0x1.9d2308p-11f,
     0x1.55c62ep-11f},
    {-0x1.04cc3ap-14f, -0x1.f5f338p-16f, -0x1.93fa3p-17f, -0x1.32f2a2p-18f, -0x1.c89a7cp-20f,
     -0x1.51a274p-21f, -0x1.ef1564p-23f, -0x1.6f3166p-24f, -0x1.d8f126p-10f, -0x1.323e7p-12f,
     0x1.bc3532p-11f, 0x1.df45c2p-11f, 0x1.064ae4p-11f, 0x1.37c984p-13f, -0x1.652daap-16f,
     -0x1.2dfe56p-14f},
    {0x1.7d545ep-18f, 0x1.1cb1b4p-18f, 0x1.f751ecp-20f, 0x1.8ccde2p-21f, 0x1.29bc5p-22f,
     0x1.b9c53cp-24f, 0x1.46a4e2p-25f, 0x1.dddf6ep-27f, 0x1.61822cp-12f, 0x1.1adee8p-11f,
     0x1.8ba624p-13f, -0x1.a89f78p-14f, -0x1.2f18e8p-13f, -0x1.6481c2p-14f, -0x1.115d9ep-15f,
     -0x1.4d388ep-18f},
};

// |x| / (1 + exp(|x|)), the same.
constexpr float kSiluTable[8][16] = {
    {0x1.201532p2f, 0x1.6006b6p2f, 0x1.9ff114p2f, 0x1.dff968p2f, 0x1.0ff03cp3f, 0x1.2ff882p3f,
     0x1.500054p3f, 0x1.7000f8p3f, 0, 0x1.800dc4p-1f, 0x1.40014ap0f, 0x1.bffdp0f, 0x1.1ffa6cp1f,
     0x1.600494p1f, 0x1.a00b84p1f, 0x1.dff254p1f},
    {0x1.949efep-5f, 0x1.6ea55ep-6f, 0x1.3ffc62p-7f, 0x1.0fcbe6p-8f, 0x1.c60d12p-10f,
     0x1.75182ep-11f, 0x1.2f2886p-12f, 0x1.e88ffp-14f, 0, 0x1.ecd0bcp-3f, 0x1.1d0e6ap-2f,
     0x1.094dd2p-2f, 0x1.b7679ep-3f, 0x1.52617ap-3f, 0x1.f0c7fap-4f, 0x1.61097ap-4f},
    {-0x1.364a8ap-5f, -0x1.2a7f0cp-6f, -0x1.0e4502p-7f, -0x1.d6cf36p-9f, -0x1.908756p-10f,
     -0x1.4dca26p-11f, -0x1.124722p-12f, -0x1.be12fap-14f, 0x1p-1f, 0x1.424632p-3f, 0x1.9dd734p-8f,
     -0x1.29accp-4f, -0x1.94641cp-4f, -0x1.86051cp-4f, -0x1.4567a8p-4f, -0x1.f5894ep-5f},
    {0x1.ab2f04p-7f, 0x1.cad1bcp-8f, 0x1.b871a2p-9f, 0x1.8dce48p-10f, 0x1.5aef76p-11f,
     0x1.26766ep-12f, 0x1.eac7fp-14f, 0x1.9394e8p-15f, -0x1.ffffdcp-3f, -0x1.823feep-3f,
     -0x1.cf4162p-4f, -0x1.8ce4c6p-5f, -0x1.facb7p-8f, 0x1.844b48p-7f, 0x1.288fecp-6f,
     0x1.222beep-6f},
    {-0x1.2e16ccp-9f, -0x1.a753fcp-10f, -0x1.c43e4ap-11f, -0x1.b088aep-12f, -0x1.86f1aep-13f,
     -0x1.541e88p-14f, -0x1.20a58ap-15f, -0x1.e16d32p-17f, -0x1.d76c6ap-18f, 0x1.846d5cp-5f,
     0x1.94a3d8p-5f, 0x1.225f68p-5f, 0x1.3c46b6p-6f, 0x1.fa84dap-8f, 0x1.6323eap-10f,
     -0x1.770e9p-10f},
    {0x1.53476ep-15f, 0x1.c7d4d6p-13f, 0x1.3a7bc2p-13f, 0x1.4db362p-14f, 0x1.3f0526p-15f,
     0x1.1f8f9ap-16f, 0x1.f438d4p-18f, 0x1.a8c712p-19f, 0x1.564d88p-6f, 0x1.d94c12p-8f,
     -0x1.17f442p-8f, -0x1.14714p-7f, -0x1.d5aa84p-8f, -0x1.1f8a5ep-8f, -0x1.17c992p-9f,
     -0x1.9ff5a4p-11f},
    {0x1.c2c5b8p-14f, -0x1.bed014p-19f, -0x1.110b1ap-16f, -0x1.7590ap-17f, -0x1.8bdbaep-18f,
     -0x1.79982p-19f, -0x1.54798cp-20f, -0x1.2883cp-21f, -0x1.b4a9d6p-13f, -0x1.632476p-8f,
     -0x1.a701a4p-9f, -0x1.43c594p-12f, 0x1.0800aep-10f, 0x1.170e2ap-10f, 0x1.771ffep-11f,
     0x1.8fa11ap-12f},
    {-0x1.309ea4p-15f, -0x1.a7323cp-18f, 0x1.6aea92p-22f, 0x1.1512dep-20f, 0x1.6d3db8p-21f,
     0x1.7ea97cp-22f, 0x1.6db1b4p-23f, 0x1.4b2a96p-24f, -0x1.d7f4f6p-10f, 0x1.59858ep-14f,
     0x1.1b6db8p-10f, 0x1.7c1844p-11f, 0x1.70e892p-13f, -0x1.6c1894p-14f, -0x1.1948c6p-13f,
     -0x1.7dbb5ep-14f},
};

// log(1 + exp(-|x|)), the same.
constexpr float kSoftplusTable[8][16] = {
    {0x1.1ff5cep2f, 0x1.5feca6p2f, 0x1.a00b3cp2f, 0x1.e00ccp2f, 0x1.0ff122p3f, 0x1.3004dcp3f,
     0x1.4fe886p3f, 0x1.7002dp3f, 0x1.ffe15p-3f, 0x1.8012cp-1f, 0x1.3fdf86p0f, 0x1.c00ae2p0f,
     0x1.20123cp1f, 0x1.5fefb8p1f, 0x1.9fea8cp1f, 0x1.e0039ep1f},
    {0x1.6a3c92p-7f, 0x1.0b99ap-8f, 0x1.898d46p-10f, 0x1.21ab7ep-11f, 0x1.ab6f86p-13f,
     0x1.39c0ep-14f, 0x1.cf4deep-16f, 0x1.53ca88p-17f, 0x1.26e4e4p-1f, 0x1.8c1be2p-2f,
     0x1.0216a2p-2f, 0x1.4816b6p-3f, 0x1.9a3a92p-4f, 0x1.fbe214p-5f, 0x1.37d5cep-5f,
     0x1.7ccfe8p-6f},
    {-0x1.683de8p-7f, -0x1.0b0df8p-8f, -0x1.8941b6p-10f, -0x1.219708p-11f, -0x1.ab6466p-13f,
     -0x1.39bde6p-14f, -0x1.cf4c52p-16f, -0x1.53ca1ep-17f, -0x1.c05894p-2f, -0x1.487d36p-2f,
     -0x1.c843fep-3f, -0x1.2f2864p-3f, -0x1.865ad6p-4f, -0x1.ec75b2p-5f, -0x1.31f982p-5f,
     -0x1.786baep-6f},
    {0x1.6447fep-8f, 0x1.09f756p-9f, 0x1.88aa9p-11f, 0x1.216e02p-12f, 0x1.ab4df6p-14f,
     0x1.39b7cap-15f, 0x1.cf48e4p-17f, 0x1.53c918p-18f, 0x1.f81612p-4f, 0x1.be39ep-4f,
     0x1.629db6p-4f, 0x1.02485p-4f, 0x1.612748p-5f, 0x1.cedb06p-6f, 0x1.268bdep-6f, 0x1.6fc5bcp-7f},
    {-0x1.d095ep-10f, -0x1.5fb6eep-11f, -0x1.04fa52p-12f, -0x1.817514p-14f, -0x1.1cbce2p-15f,
     -0x1.a2339ep-17f, -0x1.34d276p-18f, -0x1.c502fep-20f, -0x1.4e41ap-8f, -0x1.aa795ep-7f,
     -0x1.0624acp-6f, -0x1.e4d76cp-7f, -0x1.7d216p-7f, -0x1.0f79bcp-7f, -0x1.6b6482p-8f,
     -0x1.d3d55ap-9f},
    {0x1.bc171p-12f, 0x1.5a01c2p-13f, 0x1.0376aep-14f, 0x1.80a952p-16f, 0x1.1c8f8p-17f,
     0x1.a2277p-19f, 0x1.34d96cp-20f, 0x1.c51bb6p-22f, -0x1.406b44p-8f, -0x1.6dade4p-9f,
     -0x1.26b15p-12f, 0x1.4f2196p-10f, 0x1.c695fep-10f, 0x1.9805e4p-10f, 0x1.3401e2p-10f,
     0x1.a8533p-11f},
    {-0x1.44a7b2p-14f, -0x1.0de5p-15f, -0x1.9df642p-17f, -0x1.35647ap-18f, -0x1.cafa6cp-20f,
     -0x1.51b75ep-21f, -0x1.f2e62ep-23f, -0x1.6e0706p-24f, 0x1.04c402p-11f, 0x1.0ff67ep-10f,
     0x1.c246bp-11f, 0x1.8da52ep-12f, 0x1.9d4c96p-16f, -0x1.12c01ep-13f, -0x1.496aaap-13f,
     -0x1.10edeep-13f},
    {0x1.586fp-17f, 0x1.4c140cp-18f, 0x1.0833bep-19f, 0x1.93edc8p-21f, 0x1.2bfafcp-22f,
     0x1.ba9828p-24f, 0x1.46cea4p-25f, 0x1.dd4fc2p-27f, 0x1.3154bep-12f, 0x1.a051c6p-15f,
     -0x1.244b0cp-13f, -0x1.3da694p-13f, -0x1.61d89p-14f, -0x1.e12336p-16f, 0x1.e42a0cp-19f,
     0x1.900f8ep-17f},
};

// Masked forms with all lanes: those without a mask make gcc 12 warn of what it did not initialise.
constexpr __mmask16 kAllLanes = 0xFFFF;

// The polynomials of `table` at x, in the intervals selected by the lowest bits of `place`. Row
// after row for a whole pack: a processor does not look far enough ahead to find the next vector's
// operations by itself.
template <int Rows, int Columns, int K>
INLINE void evaluate(const float (&table)[Rows][Columns], const __m512i (&place)[K], __m512 (&x)[K],
                     __m512 (&sum)[K]) {
  const auto read = [&](int row, int i) INLINE_LAMBDA {
    const __m512 lower = _mm512_loadu_ps(table[row]);
    if constexpr (Columns == 16) return _mm512_maskz_permutexvar_ps(kAllLanes, place[i], lower);
    return _mm512_permutex2var_ps(lower, place[i], _mm512_loadu_ps(table[row] + Columns - 16));
  };
#pragma GCC unroll 8
  for (int i = 0; i < K; ++i) x[i] = _mm512_sub_ps(x[i], read(0, i));
#pragma GCC unroll 8
  for (int i = 0; i < K; ++i) sum[i] = read(Rows - 1, i);
#pragma GCC unroll 8
  for (int row = Rows - 2; row > 0; --row) {
#pragma GCC unroll 8
    for (int i = 0; i < K; ++i) sum[i] = _mm512_fmadd_ps(sum[i], x[i], read(row, i));
  }
}

template <int K>
INLINE X<float, K> tanh_by_table(X<float, K> x) {
  __m512 near[K], sum[K];
  __m512i place[K];
#pragma GCC unroll 8
  for (int i = 0; i < K; ++i) {
    const __m512 all_but_sign = (__m512)magnitude<float, 1>({x.v[i]}).v[0];
    // The second operand is returned where one of them is NaN.
    near[i] = _mm512_maskz_min_ps(kAllLanes, _mm512_set1_ps(9.1f), all_but_sign);
    const __m512 stretched = _mm512_fmadd_ps(near[i], _mm512_set1_ps(1.648f), _mm512_set1_ps(1.0f));
    place[i] = _mm512_maskz_srli_epi32(kAllLanes, _mm512_castps_si512(stretched), 21);
  }
  evaluate(kTanhTable, place, near, sum);
  return each<V<float>, K>([&](int i) INLINE_LAMBDA {
    const __m512i sign = _mm512_set1_epi32(int32_t(0x80000000));
    // sum | (x & sign)
    return (V<float>)_mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(_mm512_castps_si512(sum[i]), (__m512i)x.v[i], sign, 0xF8));
  });
}

// Whether all of a pack is below `end` in size; false for NaN.
template <int K>
INLINE bool within(X<float, K> x, float end) {
  __mmask16 outside = 0;
#pragma GCC unroll 8
  for (int i = 0; i < K; ++i) {
    const __m512 size = (__m512)magnitude<float, 1>({x.v[i]}).v[0];
    outside |= _mm512_cmp_ps_mask(size, _mm512_set1_ps(end), _CMP_NLT_UQ);
  }
  return outside == 0;
}

// x - sum for x above zero, -sum below.
template <int K>
INLINE X<float, K> without_sum(X<float, K> x, const __m512 (&sum)[K]) {
  return each<V<float>, K>([&](int i) INLINE_LAMBDA {
    const __m512 zero = _mm512_setzero_ps();
    return (V<float>)_mm512_sub_ps(_mm512_maskz_max_ps(kAllLanes, (__m512)x.v[i], zero), sum[i]);
  });
}

// 1 - sum for x above zero, sum below.
template <int K>
INLINE X<float, K> mirrored(X<float, K> x, const __m512 (&sum)[K]) {
  return each<V<float>, K>([&](int i) INLINE_LAMBDA {
    const __mmask16 above = ~_mm512_movepi32_mask((__m512i)x.v[i]);
    return (V<float>)_mm512_mask_sub_ps(sum[i], above, _mm512_set1_ps(1.0f), sum[i]);
  });
}

constexpr float kLogisticEnd = 12.0f;

template <int K>
INLINE void evaluate_logistic(const float (&table)[8][16], X<float, K> x, __m512 (&sum)[K]) {
  __m512 size[K];
  __m512i place[K];
#pragma GCC unroll 8
  for (int i = 0; i < K; ++i) {
    size[i] = (__m512)magnitude<float, 1>({x.v[i]}).v[0];
    const __m512 moved = _mm512_add_ps(size[i], _mm512_set1_ps(4.0f));
    place[i] = _mm512_maskz_srli_epi32(kAllLanes, _mm512_castps_si512(moved), 20);
  }
  evaluate(table, place, size, sum);
}

template <int K>
INLINE X<float, K> logistic_by_table(X<float, K> x) {
  __m512 sum[K];
  evaluate_logistic<K>(kLogisticTable, x, sum);
  return mirrored<K>(x, sum);
}

template <int K>
INLINE X<float, K> silu_by_table(X<float, K> x) {
  __m512 sum[K];
  evaluate_logistic<K>(kSiluTable, x, sum);
  return without_sum<K>(x, sum);
}

template <int K>
INLINE X<float, K> softplus_by_table(X<float, K> x) {
  __m512 sum[K];
  evaluate_logistic<K>(kSoftplusTable, x, sum);
  return each<V<float>, K>([&](int i) INLINE_LAMBDA {
    const __m512 zero = _mm512_setzero_ps();
    return (V<float>)_mm512_add_ps(_mm512_maskz_max_ps(kAllLanes, (__m512)x.v[i], zero), sum[i]);
  });
}
