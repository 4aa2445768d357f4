// A Butcher tableau as the loops use it: made from fastnode.tableaus, where the coefficients stand.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

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
    double total = coefficients.back() * x;
    for (size_t p = coefficients.size() - 1; p-- > 0;) total = (total + coefficients[p]) * x;
    return total;
  }
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
