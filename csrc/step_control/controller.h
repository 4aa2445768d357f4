// Step-size control: fastnode.control.controllers.Controller, operation by operation.
#pragma once

#include <cmath>

#include "common/power.h"
#include "common/scalar.h"

namespace fastnode {

// As std::min and std::max, which device code cannot call.
FASTNODE_HD double lesser(double a, double b) { return b < a ? b : a; }
FASTNODE_HD double greater(double a, double b) { return a < b ? b : a; }

FASTNODE_HD bool finite(double x) { return x - x == 0; }

// x^y by the C library: what Python computes. Another library rounds some powers differently.
struct LibraryPower {
  double operator()(double x, double y) const { return std::pow(x, y); }
};

// x^y with the same bits on CPU and GPU: for states on a GPU, where host or device may decide.
struct PortablePower {
  FASTNODE_HD double operator()(double x, double y) const { return portable_power(x, y); }
};

// The distance from 1 to the next number of T.
template <class T>
struct Resolution;
template <>
struct Resolution<float> {
  static constexpr double value = 0x1p-23;
};
template <>
struct Resolution<double> {
  static constexpr double value = 0x1p-52;
};
template <>
struct Resolution<BFloat16> {
  static constexpr double value = 0x1p-7;
};
template <>
struct Resolution<Half> {
  static constexpr double value = 0x1p-10;
};

struct Controller {
  double safety, ifactor, dfactor, smallest, min_step, max_step;
  double b1, b2, b3;
  int order;
  // Resolution of the numbers of the state; 0 where nobody asks whether steps still change it.
  double resolution = 0;

  FASTNODE_HD double clip(double h) const { return lesser(greater(h, min_step), max_step); }

  FASTNODE_HD bool accepts(double h, double ratio) const {
    return ratio <= 1 || (h <= min_step && finite(ratio));
  }

  // `before` and `earlier` are the errors of the last two accepted steps.
  template <class Power>
  FASTNODE_HD double next_step(double h, double ratio, double before, double earlier,
                               Power power) const {
    double factor;
    if (!finite(ratio)) {
      factor = dfactor;
    } else if (ratio == 0) {
      factor = ifactor;
    } else {
      factor = safety * power(ratio, -b1 / order);
      if (b2 != 0 || b3 != 0) {
        factor *=
            power(greater(before, 1e-4), -b2 / order) * power(greater(earlier, 1e-4), -b3 / order);
      }
      const double floor = ratio < 1 ? smallest : dfactor;
      factor = lesser(ifactor, greater(factor, floor));
    }
    return clip(h * factor);
  }

  // fastnode.control.controllers.initial_step, which gives the source, from the norms of the state,
  // of its derivative and of the change of the derivative over a trial step.
  FASTNODE_HD static double trial_step(double d0, double d1, double span) {
    return lesser(d0 < 1e-5 || d1 < 1e-5 ? 1e-6 : 0.01 * d0 / d1, span);
  }

  template <class Power>
  FASTNODE_HD double first_step(double h0, double d1, double difference, Power power) const {
    const double d2 = difference / h0;
    if (!finite(d2)) return h0;
    const double h1 = d1 <= 1e-15 && d2 <= 1e-15 ? greater(1e-6, h0 * 1e-3)
                                                 : power(0.01 / greater(d1, d2), 1.0 / order);
    return lesser(100 * h0, h1);
  }
};

}  // namespace fastnode
