// Activations of perceptrons and their derivatives, one number at a time: for GPUs, where each
// thread has a number of its own. By the C library's functions, in float32 within four units in the
// last place (CUDA C++ Programming Guide, mathematical functions); math-inl.h has those on vectors.
#pragma once

#include <cmath>

#include "common/scalar.h"
#include "mlp/simd/simd_kernels.h"

namespace fastnode {

// 1 / (1 + exp(-x)), without overflow of intermediate results.
template <class T>
FASTNODE_HD T logistic(T x) {
  const T e = std::exp(-std::abs(x)), one = 1;
  return (x < 0 ? e : one) / (one + e);
}

template <class T>
FASTNODE_HD T normal_distribution(T x) {
  return T(0.5) * std::erfc(T(-0.70710678118654752440) * x);
}

// Applies `which` to all of z[0 .. Count).
template <int Count, class T>
FASTNODE_HD void activate(Activation which, T* z) {
#define FASTNODE_EACH(expression)   \
  for (int i = 0; i < Count; ++i) { \
    const T x = z[i];               \
    z[i] = (expression);            \
  }                                 \
  return
  switch (which) {
    case Activation::kElu:
      FASTNODE_EACH(x > 0 ? x : std::expm1(x));
    case Activation::kGelu:
      FASTNODE_EACH(x * normal_distribution(x));
    case Activation::kLeakyRelu:
      FASTNODE_EACH(x > 0 ? x : x * T(kLeakySlope));
    case Activation::kRelu:
      FASTNODE_EACH(x < 0 ? T(0) : x);
    case Activation::kSelu:
      FASTNODE_EACH(x > 0 ? x * T(kSeluScale) : T(kSeluDepth) * std::expm1(x));
    case Activation::kSigmoid:
      FASTNODE_EACH(logistic(x));
    case Activation::kSilu:
      FASTNODE_EACH(x * logistic(x));
    case Activation::kSin:
      FASTNODE_EACH(std::sin(x));
    case Activation::kSoftplus:
      FASTNODE_EACH(x > 20 ? x : std::log1p(std::exp(x)));
    case Activation::kTanh:
      FASTNODE_EACH(std::tanh(x));
  }
#undef FASTNODE_EACH
}

// The derivative at z, where a is the activation.
template <class T>
FASTNODE_HD T derivative(Activation which, T z, T a) {
  switch (which) {
    case Activation::kElu:
      return z > 0 ? T(1) : a + 1;
    case Activation::kGelu:
      return normal_distribution(z) + z * T(0.39894228040143267794) * std::exp(T(-0.5) * z * z);
    case Activation::kLeakyRelu:
      return z > 0 ? T(1) : T(kLeakySlope);
    case Activation::kRelu:
      return z > 0 ? T(1) : T(0);
    case Activation::kSelu:
      return z > 0 ? T(kSeluScale) : a + T(kSeluDepth);
    case Activation::kSigmoid:
      return a - a * a;
    case Activation::kSilu: {
      const T s = logistic(z);
      return s + a * (1 - s);
    }
    case Activation::kSin:
      return std::cos(z);
    case Activation::kSoftplus:
      return z > 20 ? T(1) : logistic(z);
    case Activation::kTanh:
      return 1 - a * a;
  }
  return 0;
}

}  // namespace fastnode
