// What the fixed and the adaptive loop share: steps, and where output goes.
#pragma once

#include <memory>

#include "driver/arithmetic.h"
#include "driver/field.h"

namespace fastnode {

// A step from (t, y) to (t1, y1) with its stages, as the caller keeps it.
struct Step {
  std::shared_ptr<Field> field;
  std::shared_ptr<const Tableau> tableau;
  double t, t1;
  at::Tensor y, y1;
  StageDerivatives k;
  double error;

  // Dense output of the method itself at a time inside the step.
  at::Tensor at(double time);
};

// The stages that dense output is made of.
std::vector<int> dense_stages(const Tableau& tableau);
// Adds to c their weights in y(time) for a step from t to t1.
void add_dense_weights(const Tableau& tableau, double t, double t1, double time,
                       std::vector<double>& c);

// The stages after the first, k[0] being the field at (t, y). `stage` is the last state at which
// the field was evaluated; `perturb` has stages at t1 evaluated just before it.
void take_stages(Field& field, const Tableau& tableau, const Arithmetic& arithmetic, double t,
                 double t1, const at::Tensor& y, StageDerivatives& k, Handle& stage, bool perturb);

// The further stages of a step from t to t1, which dense output inside it needs, behind those in k;
// once they are there they stay.
void take_further_stages(Field& field, const Tableau& tableau, const Arithmetic& arithmetic,
                         double t, double t1, const at::Tensor& y, StageDerivatives& k);

// The result [T, ...]: one block of memory, or a stack of graph nodes once there is a graph.
class Outputs {
 public:
  Outputs(const at::Tensor& y, int64_t count) : like_(y), count_(count) {}

  void add(const at::Tensor& y);
  // y + sum_j c_ij k_j for each row of c, [rows, stages].
  void add(const Arithmetic& arithmetic, const at::Tensor& y, const StageDerivatives& k,
           const std::vector<int>& stages, const std::vector<double>& c);
  int64_t size() const { return filled_ + int64_t(nodes_.size()); }
  // What has been added so far.
  at::Tensor finish() const;

 private:
  void* next(int64_t count);

  at::Tensor like_, block_;
  int64_t count_, filled_ = 0;
  std::vector<at::Tensor> nodes_;
};

}  // namespace fastnode
