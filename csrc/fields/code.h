// What a generated field is to the loops that solve it: a table of functions in a library that was
// compiled for this machine.
#pragma once

#include <cstdint>

namespace fastnode {

// Changes with the table.
constexpr int64_t kFieldAbi = 1;

// States and scratch begin at lines of 64 bytes.
//
// The value of a field, or its VJP, on `lanes` samples side by side: element i of sample s at
// i * lanes + s. With one lane the features of a sample lie side by side.
template <class T>
struct FieldCode {
  int64_t abi, lanes;
  int64_t per_sample_times;  // whether t is [lanes], else one number
  // Numbers in the memory that the functions are given; `scratch` for all lanes together.
  int64_t per_solve, per_time, scratch;
  // What depends on the inputs alone, and on the time as well.
  void (*prepare)(const T* const* inputs, T* per_solve);
  void (*at_time)(const T* t, const T* const* inputs, const T* per_solve, T* per_time);
  // `inputs`: the tensors that the field holds, contiguous. The value: out = f(t, y). The VJP:
  // out = (df/dy)^T g, and to `sums` the gradients of t and of the inputs are added.
  void (*run)(const T* t, const T* const* inputs, const T* per_solve, const T* per_time, const T* y,
              const T* g, T* out, T* const* sums, T* scratch);
};

}  // namespace fastnode
