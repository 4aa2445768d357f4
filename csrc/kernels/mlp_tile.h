// The kernels of mlp.h for one instruction set. Included by mlp_v4.cpp, mlp_v3.cpp and
// mlp_baseline.cpp inside a namespace of their own, which says how wide vectors are (kBytes), how
// many rows fit the registers (kBlock, kNarrow) and what functions are compiled for.
//
// Nothing from the standard library may be called by name in here but what C declares: a template
// of it that is compiled for one of these instruction sets could be the copy that the linker keeps
// for everyone.
#pragma once

#include "kernels/mlp_activation.h"
#include "kernels/mlp_product.h"
#include "kernels/mlp_stages.h"

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
