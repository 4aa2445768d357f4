// From tensors to kernels/terms.h.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include "common/terms.h"
#include "ops/common.h"

namespace fastnode {

inline void check_like(const at::Tensor& x, const at::Tensor& like, const char* name) {
  TORCH_CHECK_VALUE(x.sizes() == like.sizes(), name, " must have the state's shape ", like.sizes(),
                    ", got ", x.sizes());
  TORCH_CHECK_TYPE(x.scalar_type() == like.scalar_type(), name, " must have the state's dtype ",
                   like.scalar_type(), ", got ", x.scalar_type());
  TORCH_CHECK_VALUE(x.device() == like.device(), name, " must be on the state's device ",
                    like.device(), ", got ", x.device());
}

// k against as many weights (a list of numbers, or the columns of a matrix).
inline void check_terms(at::TensorList k, size_t weights, const at::Tensor& like) {
  TORCH_CHECK_VALUE(k.size() == weights && k.size() <= size_t(kMaxTerms),
                    "k and c must have one length of at most ", kMaxTerms, ", got ", k.size(),
                    " and ", weights);
  for (const at::Tensor& each : k) check_like(each, like, "each of k");
}

// Contiguous stages and their weights (none where a kernel takes them from elsewhere); owns the
// copies of those stages that were not contiguous.
class ContiguousTerms {
 public:
  explicit ContiguousTerms(at::TensorList k, at::ArrayRef<double> c = {}) : c_(c) {
    for (const at::Tensor& each : k) k_.push_back(each.contiguous());
  }

  template <class T>
  Terms<T> as() const {
    Terms<T> terms{};
    terms.count = int(k_.size());
    for (int j = 0; j < terms.count; ++j) terms.k[j] = data<T>(k_[j]);
    for (size_t j = 0; j < c_.size(); ++j) terms.c[j] = acc_t<T>(c_[j]);
    return terms;
  }

 private:
  c10::SmallVector<at::Tensor, 8> k_;
  at::ArrayRef<double> c_;
};

}  // namespace fastnode
