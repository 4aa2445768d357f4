// The polynomials of dense output, with the same bits wherever they are computed.
#pragma once

#include "common/power.h"

namespace fastnode {

// p(x) = sum_i a_i x^(i + 1).
FASTNODE_HD double polynomial_at(const double* a, int degree, double x) {
  double total = 0;
  for (int i = degree - 1; i >= 0; --i) total = rounded_product(total + a[i], x);
  return total;
}

// p'(x).
FASTNODE_HD double polynomial_derivative_at(const double* a, int degree, double x) {
  double total = 0;
  for (int i = degree - 1; i >= 0; --i) {
    total = rounded_product(total, x) + rounded_product(double(i + 1), a[i]);
  }
  return total;
}

}  // namespace fastnode
