// Step-size control: fastnode.controllers.Controller, operation by operation.
#pragma once

#include <algorithm>
#include <cmath>

namespace fastnode {

struct Controller {
  double safety, ifactor, dfactor, smallest, min_step, max_step;
  double b1, b2, b3;
  int order;

  double clip(double h) const { return std::min(std::max(h, min_step), max_step); }

  bool accepts(double h, double ratio) const {
    return ratio <= 1 || (h <= min_step && std::isfinite(ratio));
  }

  // `before` and `earlier` are the errors of the last two accepted steps.
  double next_step(double h, double ratio, double before, double earlier) const {
    double factor;
    if (!std::isfinite(ratio)) {
      factor = dfactor;
    } else if (ratio == 0) {
      factor = ifactor;
    } else {
      factor = safety * std::pow(ratio, -b1 / order);
      if (b2 != 0 || b3 != 0) {
        factor *= std::pow(std::max(before, 1e-4), -b2 / order) *
                  std::pow(std::max(earlier, 1e-4), -b3 / order);
      }
      const double floor = ratio < 1 ? smallest : dfactor;
      factor = std::min(ifactor, std::max(factor, floor));
    }
    return clip(h * factor);
  }
};

}  // namespace fastnode
