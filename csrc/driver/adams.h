// Adams steps: fastnode.engines.reference.adams, step for step the same.
#pragma once

#include <memory>

#include "driver/fixed.h"

namespace fastnode {

// A method as fastnode.tableaus.adams gives it.
struct AdamsMethod {
  int kept;  // most derivatives of steps that it uses
  // For n kept derivatives, 1 <= n <= kept, the weights on even grids at index n - 1: of those
  // derivatives, and of the derivative at the end of the step followed by them.
  std::vector<std::vector<double>> bashforth, moulton;
  std::shared_ptr<const Tableau> start;  // of the first steps
};

// When the corrector has converged: all elements of the last change of the increment are below
// atol + rtol max(|before|, |after|).
class AdamsConvergence {
 public:
  // `norm` is a fastnode.control.norms.ErrorNorm, which is called where no loop takes the state.
  AdamsConvergence(py::object norm, const at::Tensor& like, const Layout& layout);

  bool operator()(const at::Tensor& before, const at::Tensor& after) const;

 private:
  py::object norm_;
  at::ScalarType dtype_;
  bool on_memory_;
  std::vector<int64_t> sizes_;
  std::vector<double> rtol_, atol_;
};

class AdamsSteps : public FixedSteps {
 public:
  // Without `convergence` the explicit method. `on_failure` is a Python function that is called
  // where the corrector does not converge in `max_iters` evaluations.
  AdamsSteps(const AdamsMethod& method, const at::Tensor& like, bool perturb,
             std::optional<AdamsConvergence> convergence, int max_iters, py::object on_failure);

  Taken take(Field& field, double t, double t1, Handle& y) override;

 private:
  // Derivatives kept of earlier steps; until there are so many, steps are those of `start`.
  static constexpr int kFewest = 3;

  void remember(Field& field, double t, Handle& y);
  // h times the weights for the derivatives in `past_`, behind that at the end of the step for an
  // implicit method.
  std::vector<double> weights(double h, bool implicit) const;
  at::Tensor sum(const at::Tensor& y, const StageDerivatives& k, const std::vector<int>& stages,
                 const double* c) const;
  at::Tensor corrected(Field& field, double t1, double h, const at::Tensor& y, at::Tensor rise);

  const AdamsMethod& method_;
  const Arithmetic arithmetic_;
  const bool perturb_;
  const std::optional<AdamsConvergence> convergence_;
  const int max_iters_;
  const py::object on_failure_;
  RungeKuttaSteps start_;
  const at::Tensor zero_;
  // The latest first; `count_` of them are there, and the last is the place of Taken.
  StageDerivatives past_;
  std::vector<double> times_;
  int count_ = 0;
  StageDerivatives corrected_;
  Weights rise_;
  Handle stage_;
};

}  // namespace fastnode
