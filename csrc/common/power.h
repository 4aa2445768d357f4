// x^y in float64 with the same bits wherever it is computed.
#pragma once

#include <cmath>

#include "common/scalar.h"

namespace fastnode {

// a b rounded, never part of an fma: so that sums after it are the same wherever they are computed.
FASTNODE_HD double rounded_product(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  double product = a * b;
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  // Compilers fuse over statements and inlined calls, but not over memory that might have changed.
  __asm__("" : "+m"(product));
#endif
  return product;
#endif
}

// Powers of the C library and of CUDA's differ in the last bit, and compilers fuse a product and a
// sum as they like. Here every sum after a product is an fma that says so, or the product is
// rounded, and the compiler has no choice. Within 1e-13 of the power, plenty for the size of a
// step; x must be positive and finite.
//
// log2(x) = e + 2 atanh(s) / ln(2) with s = (m - 1) / (m + 1), x = m 2^e and m in [2/3, 4/3), where
// |s| <= 1/5; 2^z = 2^n e^(r ln(2)) with z = n + r and |r| <= 1/2.
// Source: J.-M. Muller, Elementary Functions, 3rd edition, sections 4.2.2 and 11.1.
FASTNODE_HD double portable_power(double x, double y) {
  constexpr double kLn2 = 0.6931471805599453;
  constexpr double kTwoOverLn2 = 2.8853900817779268;
  // Subnormal numbers are scaled into the normal ones.
  const bool tiny = x < 0x1p-1022;
  const uint64_t bits = bit_cast<uint64_t>(tiny ? x * 0x1p54 : x);
  int exponent = int(bits >> 52) - 1023 - (tiny ? 54 : 0);
  double m = bit_cast<double>((bits & 0xFFFFFFFFFFFFFull) | (1023ull << 52));
  if (m >= 4.0 / 3.0) {
    m *= 0.5;
    ++exponent;
  }
  const double s = (m - 1) / (m + 1), square = s * s;
  // The last term left out is s^24 / 25 < 1e-18.
  double series = 1.0 / 23;
  for (int odd = 21; odd >= 1; odd -= 2) series = std::fma(series, square, 1.0 / odd);
  const double z = rounded_product(y, std::fma(kTwoOverLn2 * s, series, double(exponent)));
  if (!(z > -1022)) return z != z ? z : 0.0;
  if (z >= 1024) return bit_cast<double>(0x7FF0000000000000ull);
  const double n = std::rint(z), r = (z - n) * kLn2;
  double result = 1;
  // The last term left out is (ln(2) / 2)^15 / 15! < 1e-19.
  for (int k = 14; k >= 1; --k) result = std::fma(result, r * (1.0 / k), 1.0);
  // In two factors: 2^1024 alone is no number.
  const int half = int(n) / 2, rest = int(n) - half;
  return result * bit_cast<double>(uint64_t(1023 + half) << 52) *
         bit_cast<double>(uint64_t(1023 + rest) << 52);
}

}  // namespace fastnode
