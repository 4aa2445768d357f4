// Combinations of stages and norms of errors on the packed state.
#pragma once

#include "common/tableau.h"
#include "driver/handle.h"

namespace fastnode {

using StageDerivatives = std::vector<at::Tensor>;

// Whether kernels compute on numbers of this dtype.
bool kernels_take(at::ScalarType dtype);
// See step_control/controller.h; of the numbers of a floating or complex dtype.
double resolution_of(at::ScalarType dtype);

// Straight on memory for CPU states, through the ops where a graph is recorded or elsewhere.
class Arithmetic {
 public:
  explicit Arithmetic(const at::Tensor& like);

  // y + sum_j c_j k[stages_j] into `out`.
  void combine(const at::Tensor& y, const StageDerivatives& k, const std::vector<int>& stages,
               const double* c, Handle& out) const;
  // The same with c_j = h w_j.
  void combine(const at::Tensor& y, const StageDerivatives& k, const Weights& weights, double h,
               Handle& out) const;
  // Row by row of c, [rows, stages]: y + sum_j c_ij k[stages_j] one after the other at `out`, for
  // states without a graph; for others as one tensor [rows, ...].
  void combine_rows_into(const at::Tensor& y, const StageDerivatives& k,
                         const std::vector<int>& stages, const std::vector<double>& c,
                         void* out) const;
  at::Tensor combine_rows(const at::Tensor& y, const StageDerivatives& k,
                          const std::vector<int>& stages, const std::vector<double>& c) const;
  // Whether these can be combined on memory alone.
  bool raw(const at::Tensor& y, const StageDerivatives& k, const std::vector<int>& stages) const;

 private:
  void combine_into(const at::Tensor& y, const StageDerivatives& k, const std::vector<int>& stages,
                    const double* c, void* out) const;

  bool on_memory_;
  at::ScalarType dtype_;
  int64_t numel_;
};

// sqrt(mean((sum_j c_j k_j / (atol + rtol max(|y0|, |y1|)))^2)): of the whole state, or the largest
// of the parts of a tuple.
class ErrorNorm {
 public:
  // `norm` is a fastnode.control.norms.ErrorNorm, which is called where tolerances are tensors, the
  // norm is the caller's own, or no kernel takes the state. Where it has a function `beside`, what
  // that returns is measured too. A state on a GPU is waited for once.
  ErrorNorm(py::object norm, const at::Tensor& like, const Layout& layout);

  double operator()(const at::Tensor& y0, const at::Tensor& y1, const StageDerivatives& k,
                    const std::vector<int>& stages, const double* c) const;

 private:
  double on_memory(const at::Tensor& y0, const at::Tensor& y1, const StageDerivatives& k,
                   const std::vector<int>& stages, const double* c) const;
  double on_gpu(const at::Tensor& y0, const at::Tensor& y1, const StageDerivatives& k,
                const std::vector<int>& stages, const double* c) const;

  py::object norm_, beside_;
  bool on_memory_, on_gpu_;
  at::ScalarType dtype_;
  std::vector<int64_t> sizes_;
  std::vector<double> rtol_, atol_;
};

// sqrt(mean((sum_j w_j k_j)^2)) over the whole state, in this machine's memory; on a GPU as a
// tensor.
double rms(const StageDerivatives& k, const Weights& weights);
at::Tensor rms_on_gpu(const StageDerivatives& k, const Weights& weights);

// Lets other Python threads run while a kernel works on many elements.
class WithoutGil {
 public:
  explicit WithoutGil(int64_t elements);
  ~WithoutGil();

 private:
  void* state_;
};

}  // namespace fastnode
