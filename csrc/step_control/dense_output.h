// Dense output: y(t0 + x h) = y + h sum_j p_j(x) k_j.
#pragma once

#include "common/tableau.h"

namespace fastnode {

// h p(x), for `time` inside the step from t0 to t1: the weight of the stage derivative whose
// polynomial has the coefficients a.
FASTNODE_HD double dense_weight(const double* a, int degree, double t0, double t1, double time) {
  const double h = t1 - t0;
  return h * polynomial_at(a, degree, (time - t0) / h);
}

inline double dense_weight(const Polynomial& p, double t0, double t1, double time) {
  return dense_weight(p.coefficients.data(), int(p.coefficients.size()), t0, t1, time);
}

}  // namespace fastnode
