// What C++ asks of Python: to raise the library's errors, and to differentiate a fused solve twice.
#pragma once

#include <pybind11/pybind11.h>

namespace fastnode {

// Functions of fastnode.errors, engines.failures and engines.fused.double_backward, registered by
// fastnode.engines.select. Never released: Python may end before static objects do.
struct PythonCalls {
  pybind11::object not_finite_at_start, cannot_continue, raise_failure, double_backward;
};

inline PythonCalls& python_calls() {
  static PythonCalls* const calls = new PythonCalls();
  return *calls;
}

}  // namespace fastnode
