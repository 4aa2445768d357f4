#include "driver/adjoint.h"

#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "driver/arithmetic.h"
#include "ops/common.h"
#include "ops/error_norm.h"

namespace fastnode {
namespace {

// sum = start + c term; a start that is null is zero, and so is a term.
template <class T>
void add_scaled(const T* start, const T* term, double c, T* sum, int64_t numel) {
  const T weight = T(c);
  at::parallel_for(0, numel, kGrain, [&](int64_t begin, int64_t end) {
    if (start == nullptr && term == nullptr) {
      std::fill(sum + begin, sum + end, T(0));
    } else if (start == nullptr) {
      for (int64_t i = begin; i < end; ++i) sum[i] = weight * term[i];
    } else if (term == nullptr) {
      std::copy(start + begin, start + end, sum + begin);
    } else {
      for (int64_t i = begin; i < end; ++i) sum[i] = start[i] + weight * term[i];
    }
  });
}

}  // namespace

OptionalTensors vjp(const std::vector<at::Tensor>& outputs,
                    const std::vector<at::Tensor>& cotangents,
                    const std::vector<at::Tensor>& inputs) {
  std::vector<at::Tensor> roots, grads;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!outputs[i].requires_grad()) continue;
    roots.push_back(outputs[i]);
    grads.push_back(cotangents[i].neg());
  }
  if (roots.empty()) return OptionalTensors(inputs.size());
  std::vector<at::Tensor> found;
  try {
    const py::gil_scoped_release release;
    found = torch::autograd::grad(roots, inputs, grads, true, false, true);
  } catch (python_error&) {
    // The engine has already handed the exception to the interpreter.
    throw py::error_already_set();
  }
  OptionalTensors results;
  for (at::Tensor& each : found) {
    results.push_back(each.defined() ? std::optional(std::move(each)) : std::nullopt);
  }
  return results;
}

void add_stage(const std::vector<at::Tensor>& totals, const std::vector<at::Tensor>& trial,
               const std::vector<at::Tensor>& errors, const OptionalTensors& terms, double b,
               double e, bool first) {
  for (size_t i = 0; i < totals.size(); ++i) {
    at::Tensor term;
    if (terms[i]) term = terms[i]->to(totals[i].scalar_type()).contiguous();
    dispatch_floating(totals[i].scalar_type(), "adjoint", [&]<class T>(T*) {
      const int64_t numel = totals[i].numel();
      const T* addend = data<T>(term);
      T* sum = mutable_data<T>(trial[i]);
      const WithoutGil nogil(numel);
      if constexpr (std::is_floating_point_v<T>) {
        if (first) {
          add_scaled(data<T>(totals[i]), addend, b, sum, numel);
        } else if (addend != nullptr && b != 0) {
          add_scaled<T>(sum, addend, b, sum, numel);
        }
        if (errors.empty()) return;
        T* error = mutable_data<T>(errors[i]);
        if (first) {
          add_scaled<T>(nullptr, addend, e, error, numel);
        } else if (addend != nullptr && e != 0) {
          add_scaled<T>(error, addend, e, error, numel);
        }
      }
    });
  }
}

double largest_error(const std::vector<at::Tensor>& y0, const std::vector<at::Tensor>& y1,
                     const std::vector<at::Tensor>& errors, const std::vector<double>& rtol,
                     const std::vector<double>& atol) {
  double largest = 0;
  for (size_t i = 0; i < y0.size(); ++i) {
    const int64_t numel = y0[i].numel();
    dispatch_floating(y0[i].scalar_type(), "adjoint", [&]<class T>(T*) {
      const Terms<T> terms{{data<T>(errors[i])}, {1}, 1};
      const WithoutGil nogil(numel);
      const double norm =
          error_norm(data<T>(y0[i]), data<T>(y1[i]), terms, rtol[i], atol[i], 0, numel);
      // Not std::max, which would lose a NaN.
      if (!(norm <= largest)) largest = norm;
    });
    if (std::isnan(largest)) break;
  }
  return largest;
}

}  // namespace fastnode
