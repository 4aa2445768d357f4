// -inl: included once for each instruction set, in its namespace (kernel_table-inl.h).
// The kernels of simd_kernels.h for one instruction set. Included by avx512.cpp, avx2.cpp and
// baseline.cpp inside a namespace of their own, which says how wide vectors are (kBytes), how
// many rows fit the registers (kBlock, kNarrow) and what functions are compiled for.
//
// Nothing from the standard library may be called by name in here but what C declares: a template
// of it that is compiled for one of these instruction sets could be the copy that the linker keeps
// for everyone.
#pragma once

#include "mlp/simd/activation-inl.h"
#include "mlp/simd/product-inl.h"
#include "mlp/simd/runge_kutta-inl.h"

template <class T>
constexpr MlpKernels<T> table() {
  return {kName,
          kLanes<T>,
          kBlock,
          kNarrow,
          kFew,
          &multiply_left<T>,
          &multiply_right<T>,
          &accumulate<T>,
          &accumulate_across<T>,
          &accumulate_lanes<T>,
          &activate<T>,
          &derive<T>,
          &combine<T>,
          &transpose<T>,
          &error<T>};
}
