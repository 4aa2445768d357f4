// What the ops share: from torch's scalar types to the kernels' types, and one way to use threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

#include "common/scalar.h"

namespace fastnode {

// Work handed to a thread at once, in elements: small enough to balance two threads on 100,000
// elements, large enough that starting one (some 5 us) does not show.
constexpr int64_t kGrain = 16384;

// The same between two evaluations of a field. What a field returns lies in the caches of the
// threads that wrote it, which just now are awake; one of two cores needs 20 us to combine 16384
// elements of which the other one wrote half, two need 5 us.
constexpr int64_t kStageGrain = 8192;

// Calls f with a null pointer of the kernels' type for a tensor's dtype.
template <class F>
void dispatch_floating(at::ScalarType dtype, const char* op, F&& f) {
  switch (dtype) {
    case at::kFloat:
      return f(static_cast<float*>(nullptr));
    case at::kDouble:
      return f(static_cast<double*>(nullptr));
    case at::kBFloat16:
      return f(static_cast<BFloat16*>(nullptr));
    case at::kHalf:
      return f(static_cast<Half*>(nullptr));
    default:
      TORCH_CHECK_TYPE(false, op, ": expected a float32, float64, bfloat16 or float16 tensor, got ",
                       dtype);
  }
}

// The same for those that are known to be float32 or float64.
template <class F>
void dispatch_real(at::ScalarType dtype, F&& f) {
  if (dtype == at::kDouble) return f(static_cast<double*>(nullptr));
  f(static_cast<float*>(nullptr));
}

inline at::ScalarType accumulate_type(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

// Whether a backward pass may compute on the memory of these tensors: on the CPU, outside of
// torch.func's transforms, and if its own derivative is not wanted.
inline bool may_read(at::TensorList tensors) {
  if (at::GradMode::is_enabled()) return false;
  for (const at::Tensor& each : tensors) {
    if (!each.is_cpu() || at::isTensorSubclassLike(each)) return false;
  }
  return true;
}

template <class T>
const T* data(const at::Tensor& x) {
  return x.defined() ? static_cast<const T*>(x.const_data_ptr()) : nullptr;
}

template <class T>
T* mutable_data(const at::Tensor& x) {
  return x.defined() ? static_cast<T*>(x.mutable_data_ptr()) : nullptr;
}

}  // namespace fastnode
