// The estimate of stiffness of fastnode.control.stiffness.
#pragma once

#include "common/scalar.h"

namespace fastnode {

// h |lambda| over the length of the stability region, from the norms of the difference of two stage
// derivatives and of the difference of their states, both in units of h. NaN for a method without
// an estimate, whose `stability` is zero.
FASTNODE_HD double stiffness_of(double derivatives, double states, double stability) {
  if (stability == 0) return bit_cast<double>(0x7FF8000000000000ull);
  return derivatives == 0 ? 0 : derivatives / states / stability;
}

}  // namespace fastnode
