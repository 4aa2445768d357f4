#include "driver/sample_field.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <cmath>
#include <limits>

#include "driver/field.h"
#include "driver/rows.h"
namespace fastnode {

SampleField::SampleField(py::object problem, const at::Tensor& y0)
    : problem_(problem),
      field_(problem.attr("field")),
      func_(field_.attr("func")),
      args_(problem.attr("args")),
      like_(y0) {}

void SampleField::take(const at::Tensor& rows) {
  args_ = problem_.attr("take_args")(args_, wrap(rows));
}

PyObject* SampleField::times(const std::vector<double>& t, const std::vector<double>* before) {
  if (!time_like_.defined() || size_t(time_like_.numel()) != t.size()) {
    time_like_ = at::empty({int64_t(t.size())}, like_.options());
  }
  const at::Tensor& out = time_.writable(time_like_);
  dispatch_real(like_.scalar_type(), [&]<class T>(T*) {
    T* values = out.mutable_data_ptr<T>();
    for (size_t i = 0; i < t.size(); ++i) values[i] = T(t[i]);
    if (before == nullptr) return;
    for (size_t i = 0; i < t.size(); ++i) {
      const T towards = T(-(*before)[i]) * std::numeric_limits<T>::infinity();
      values[i] = std::nextafter(values[i], towards);
    }
  });
  return time_.argument(Layout{});
}

void SampleField::operator()(const std::vector<double>& t, const std::vector<double>* before,
                             Handle& y, at::Tensor& k) {
  c10::SmallVector<PyObject*, 8> arguments = {nullptr, times(t, before), y.argument(Layout{})};
  for (const py::handle each : args_) arguments.push_back(each.ptr());
  const size_t count = (arguments.size() - 1) | PY_VECTORCALL_ARGUMENTS_OFFSET;
  PyObject* returned = PyObject_Vectorcall(func_.ptr(), arguments.data() + 1, count, nullptr);
  if (returned == nullptr) throw py::error_already_set();
  const py::object result = py::reinterpret_steal<py::object>(returned);
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();

  const at::IntArrayRef shape = y.tensor().sizes();
  bool kept = true;
  at::Tensor derivative;
  if (plainly_right(returned, like_, shape)) {
    derivative = THPVariable_Unpack(returned);
    kept = kept_elsewhere(returned);
  } else {
    derivative = py::cast<at::Tensor>(field_.attr("checked")(result, shape[0]));
  }
  if (derivative.requires_grad() && at::GradMode::is_enabled()) throw NeedsGraph{};
  k = own(derivative, kept);
}

}  // namespace fastnode
