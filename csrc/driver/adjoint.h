// What fastnode.adjoints.continuous.adjoint does at every stage.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <vector>

namespace fastnode {

using OptionalTensors = std::vector<std::optional<at::Tensor>>;

// -sum_i cotangents_i^T d outputs_i / d inputs; none where an input plays no part. The autograd
// graph is kept. The GIL must be held.
OptionalTensors vjp(const std::vector<at::Tensor>& outputs,
                    const std::vector<at::Tensor>& cotangents,
                    const std::vector<at::Tensor>& inputs);

// Adds b terms to `trial` and e terms to `errors`, which may be empty. At the first stage of a step
// the sums begin with `totals` and zero, whatever they were.
void add_stage(const std::vector<at::Tensor>& totals, const std::vector<at::Tensor>& trial,
               const std::vector<at::Tensor>& errors, const OptionalTensors& terms, double b,
               double e, bool first);

// The largest root mean square of errors_i / (atol_i + rtol_i max(|y0_i|, |y1_i|)); float or double
// tensors in this machine's memory.
double largest_error(const std::vector<at::Tensor>& y0, const std::vector<at::Tensor>& y1,
                     const std::vector<at::Tensor>& errors, const std::vector<double>& rtol,
                     const std::vector<double>& atol);

}  // namespace fastnode
