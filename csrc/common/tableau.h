// A Butcher tableau as the loops use it: made from fastnode.tableaus, where the coefficients stand.
#pragma once

#include <cstdint>
#include <vector>

#include "common/polynomial.h"

namespace fastnode {

// The nonzero entries of a row of coefficients.
struct Weights {
  std::vector<int> stages;
  std::vector<double> values;
};

// One stage's part in dense output: coefficients of x, x^2, ...
struct Polynomial {
  int stage;
  std::vector<double> coefficients;

  double at(double x) const {
    return polynomial_at(coefficients.data(), int(coefficients.size()), x);
  }
  double derivative_at(double x) const {
    return polynomial_derivative_at(coefficients.data(), int(coefficients.size()), x);
  }
};

// The estimate of stiffness of fastnode.control.stiffness: weights of the stages in the difference
// of two stage derivatives and in that of the states at which they were taken.
struct StiffnessPair {
  Weights derivatives, states;
  double stability;
};

struct Tableau {
  int order = 0;
  bool fsal = false;
  std::vector<double> times;  // of the stages, as fractions of the step
  std::vector<Weights> stages;
  Weights solution, error;  // error is empty for methods without an embedded one
  std::vector<Polynomial> dense;
  // Stages that only dense output needs, and their times.
  std::vector<Weights> further;
  std::vector<double> further_times;
};

}  // namespace fastnode
