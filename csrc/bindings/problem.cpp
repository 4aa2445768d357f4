// fastnode._C.check_problem, which fastnode.problem.ivp calls: the checks of the usual problem in
// one call, as a solve may take no longer than they do in Python.
#include <torch/csrc/autograd/python_variable.h>

#include <cmath>

#include "bindings/bindings.h"
#include "bindings/read_layers.h"

namespace fastnode {
namespace {

// The times as a list of numbers if y0 is a plain floating or complex tensor and t plain, on the
// CPU, 1-d, finite and strictly increasing or decreasing; else None: Python then says what is
// wrong, or takes it.
py::object check_problem(py::handle y0, py::handle t) {
  if (!is_plain(y0) || !is_plain(t)) return py::none();
  const at::Tensor &state = THPVariable_Unpack(y0.ptr()), &times = THPVariable_Unpack(t.ptr());
  const auto dtype = times.scalar_type();
  if (!(at::isFloatingType(state.scalar_type()) || at::isComplexType(state.scalar_type())) ||
      !times.is_cpu() || !times.has_storage() || times.layout() != at::kStrided ||
      times.dim() != 1 || times.numel() == 0 || (dtype != at::kFloat && dtype != at::kDouble)) {
    return py::none();
  }
  const int64_t count = times.size(0), stride = times.stride(0);
  py::list out(count);
  double before = 0;
  int direction = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double x = dtype == at::kFloat ? double(times.const_data_ptr<float>()[i * stride])
                                         : times.const_data_ptr<double>()[i * stride];
    if (!std::isfinite(x)) return py::none();
    if (i == 1) direction = x > before ? 1 : -1;
    if (i > 0 && !(direction > 0 ? x > before : x < before)) return py::none();
    PyList_SET_ITEM(out.ptr(), i, PyFloat_FromDouble(x));
    before = x;
  }
  return out;
}

}  // namespace

void bind_problem(py::module_& m) { m.def("check_problem", &check_problem); }

}  // namespace fastnode
