#include "driver/field.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <torch/csrc/autograd/python_variable.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "ops/result_pool.h"

namespace fastnode {

at::Tensor own(const at::Tensor& result, bool kept_elsewhere) {
  if (result.requires_grad() && at::GradMode::is_enabled()) {
    if (kept_elsewhere && result._version() > 0) return result.clone(at::MemoryFormat::Contiguous);
    return result.contiguous();
  }
  // The usual case without four trips through the dispatcher.
  if (!kept_elsewhere && result.is_contiguous() && !result.is_conj() && !result.is_neg()) {
    return at::Tensor(result.unsafeGetTensorImpl()->shallow_copy_and_detach(
        c10::VariableVersion(0), /*allow_tensor_metadata_change=*/false));
  }
  const at::Tensor plain = result.detach().resolve_conj().resolve_neg();
  if (!plain.is_contiguous()) return plain.contiguous();
  return kept_elsewhere ? plain.clone() : plain;
}

bool kept_elsewhere(PyObject* result) {
  const at::Storage& memory = THPVariable_Unpack(result).storage();
  return Py_REFCNT(result) != 1 || memory.use_count() != 1 || memory.allocator() == nullptr;
}

bool plainly_right(PyObject* result, const at::Tensor& like, at::IntArrayRef shape) {
  if (!THPVariable_CheckExact(result)) return false;
  const at::Tensor& x = THPVariable_Unpack(result);
  return x.sizes() == shape && x.scalar_type() == like.scalar_type() &&
         x.device() == like.device() && x.has_storage();
}

Field::Field(py::object field, const at::Tensor& y0)
    : field_(field), func_(field.attr("func")), like_(y0) {
  for (const auto& each : py::tuple(field.attr("args"))) {
    extra_.push_back(py::reinterpret_borrow<py::object>(each));
  }
  const py::object shapes = field.attr("layout").attr("shapes");
  layout_.is_tuple = !shapes.is_none();
  if (layout_.is_tuple) {
    for (const auto& shape : py::tuple(shapes)) {
      int64_t size = 1;
      std::vector<int64_t> dims;
      for (const auto& dim : py::tuple(py::reinterpret_borrow<py::object>(shape))) {
        dims.push_back(dim.cast<int64_t>());
        size *= dims.back();
      }
      layout_.shapes.push_back(dims);
      layout_.sizes.push_back(size);
    }
  }
  time_like_ = at::empty({}, at::TensorOptions().dtype(c10::toRealValueType(y0.scalar_type())));
  direction_ = field.attr("direction").cast<double>();
}

PyObject* Field::time(double t, int side) {
  const double towards = side * direction_ * std::numeric_limits<double>::infinity();
  const at::ScalarType dtype = time_like_.scalar_type();
  if (like_.is_cpu() && dtype == at::kFloat) {
    const float value = float(t);
    *time_.writable(time_like_).mutable_data_ptr<float>() =
        side ? std::nextafter(value, float(towards)) : value;
  } else if (like_.is_cpu() && dtype == at::kDouble) {
    *time_.writable(time_like_).mutable_data_ptr<double>() = side ? std::nextafter(t, towards) : t;
  } else {
    const auto options = time_like_.options();
    const auto rounded = [&](double number) { return at::full({}, number, options); };
    at::Tensor value;
    double number = t;
    if (like_.is_cpu() || !(dtype == at::kFloat || dtype == at::kDouble)) {
      value = rounded(t);
      if (side) value = value.nextafter(rounded(towards));
    } else if (side) {
      number = dtype == at::kDouble ? std::nextafter(t, towards)
                                    : std::nextafter(float(t), float(towards));
    }
    if (!like_.is_cpu()) {
      // Filled on the device: a copy to it would wait for all that it has to do before.
      if (value.defined()) number = value.item<double>();
      value = at::full({}, number, options.device(like_.device()));
    }
    time_ = Handle(std::move(value));
  }
  return time_.argument(Layout{});
}

void Field::operator()(double t, Handle& y, int side, at::Tensor& k) {
  ++evaluations_;
  c10::SmallVector<PyObject*, 6> arguments = {nullptr, time(t, side), y.argument(layout_)};
  for (const py::object& each : extra_) arguments.push_back(each.ptr());
  const size_t count = (arguments.size() - 1) | PY_VECTORCALL_ARGUMENTS_OFFSET;
  PyObject* returned = PyObject_Vectorcall(func_.ptr(), arguments.data() + 1, count, nullptr);
  if (returned == nullptr) throw py::error_already_set();
  const py::object result = py::reinterpret_steal<py::object>(returned);
  // A field written in C alone gives Python no moment to see Ctrl-C.
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();

  if (!layout_.is_tuple && plainly_right(returned, like_, like_.sizes())) {
    k = own(THPVariable_Unpack(returned), kept_elsewhere(returned));
    return;
  }
  bool right = layout_.is_tuple && PyTuple_Check(returned) &&
               size_t(PyTuple_GET_SIZE(returned)) == layout_.shapes.size();
  for (size_t i = 0; right && i < layout_.shapes.size(); ++i) {
    right = plainly_right(PyTuple_GET_ITEM(returned, i), like_, layout_.shapes[i]);
  }
  if (right) return pack(returned, k);
  k = own(py::cast<at::Tensor>(field_.attr("accept")(result)), true);
}

void Field::pack(PyObject* results, at::Tensor& k) const {
  std::vector<at::Tensor> parts;
  bool raw = like_.is_cpu();
  for (size_t i = 0; i < layout_.shapes.size(); ++i) {
    const at::Tensor& part = THPVariable_Unpack(PyTuple_GET_ITEM(results, i));
    raw = raw && part.is_contiguous() && !part.is_conj() && !part.is_neg() &&
          !(part.requires_grad() && at::GradMode::is_enabled());
    parts.push_back(part);
  }
  if (!raw) {
    for (at::Tensor& part : parts) part = part.reshape(-1);
    k = own(at::cat(parts), false);
    return;
  }
  const bool reusable = k.defined() && !k.requires_grad() && k.use_count() == 1 &&
                        k.storage().use_count() == 1 && k.numel() == like_.numel();
  if (!reusable) k = empty_result(like_);
  char* out = static_cast<char*>(k.mutable_data_ptr());
  for (const at::Tensor& part : parts) {
    if (part.nbytes() > 0) std::memcpy(out, part.const_data_ptr(), part.nbytes());
    out += part.nbytes();
  }
}

}  // namespace fastnode
