// fastnode._C.LossCode and OptimizerUpdate, which fastnode.train_step calls.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/Generator.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <chrono>
#include <cmath>
#include <memory>

#include "bindings/bindings.h"
#include "common/interrupt.h"
#include "fields/loss.h"
#include "ops/common.h"
#include "ops/mlp/layers.h"
#include "ops/optimizer_update.h"

namespace fastnode {
namespace {

using at::Tensor;

// Random numbers that a loss draws for each sample, in the order in which it draws them.
struct Draw {
  bool normal;  // else uniform in [0, 1)
  Tensor numbers;
  int64_t batch_dimension;
};

// How a batch, and its update, ended. The order of fastnode.train_step.compiled.ENDINGS.
enum class StepEnding : int { kDone, kOutOfRange, kInterrupted, kNotFinite, kOutdated };

struct Update {
  std::shared_ptr<OptimizerUpdate> rule;
  UpdateSettings settings;
};

// Code of a loss for batches of one form, and the memory that it works in.
class LossCode {
 public:
  LossCode(int64_t address, at::ScalarType dtype, int64_t numbers, int64_t parts, int64_t of_rows,
           std::vector<int64_t> sizes, int64_t multiplications)
      : dtype_(dtype), parts_(parts), work_(multiplications), sizes_(std::move(sizes)) {
    int64_t total = 0;
    for (int64_t size : sizes_) total += size;
    gradients = at::empty({total}, dtype);
    dispatch_real(dtype, [&]<class T>(T*) {
      loss<T>() = std::make_unique<GeneratedLoss<T>>(
          *reinterpret_cast<const FieldCode<T>*>(address), numbers, parts, of_rows, sizes_);
    });
  }

  template <class T>
  std::unique_ptr<GeneratedLoss<T>>& loss() {
    if constexpr (std::is_same_v<T, float>)
      return single_;
    else
      return twice_;
  }

  // Of a batch of the rows that are picked, or of all.
  LossEnding run(const std::vector<Tensor>& inputs, const std::vector<Tensor>& rows,
                 const int64_t* picked, int64_t batch, const std::vector<Draw>& draws, bool mean,
                 double* parts, const Tensor& row_gradients) {
    LossEnding ending = LossEnding::kDone;
    dispatch_real(dtype_, [&]<class T>(T*) {
      std::vector<const T*> held;
      held.reserve(inputs.size());
      for (const Tensor& each : inputs) {
        held.push_back(each.scalar_type() == dtype_ ? each.const_data_ptr<T>() : nullptr);
      }
      std::vector<SampleRows> from;
      for (const Tensor& each : rows) {
        const int64_t size = each.numel() / std::max<int64_t>(each.size(0), 1);
        const bool whole = each.scalar_type() == at::kLong;
        from.push_back({each.const_data_ptr(), size, size, 1, picked, whole, least, most});
      }
      for (const Draw& each : draws) add_draw(each, batch, from);
      const T weight = mean ? T(1) / T(batch) : T(1);
      ending =
          loss<T>()->run(held.data(), from, batch, weight, thread_count(work_ * batch), parallel,
                         parts, gradients.mutable_data_ptr<T>(),
                         row_gradients.defined() ? row_gradients.mutable_data_ptr<T>() : nullptr);
    });
    return ending;
  }

  // Whether tensors are still what code was made for; they may have got others' memory.
  bool fits(const std::vector<Tensor>& inputs) const {
    for (size_t i = 0; i < inputs.size(); ++i) {
      const Tensor& each = inputs[i];
      if (!each.is_floating_point()) continue;
      if (each.scalar_type() != dtype_ || !each.is_cpu() || !each.is_contiguous()) return false;
      if (i < sizes_.size() && each.numel() != sizes_[i]) return false;
    }
    return true;
  }

  int64_t parts() const { return parts_; }
  at::ScalarType dtype() const { return dtype_; }

  // Of all parameters, one after the other.
  Tensor gradients;
  // Between which whole numbers must lie.
  int64_t least = 0, most = 0;
  // Steps that the last call made.
  int64_t done = 0;

 private:
  static void add_draw(const Draw& draw, int64_t batch, std::vector<SampleRows>& out) {
    const auto sizes = draw.numbers.sizes();
    int64_t outer = 1, inner = 1;
    for (int64_t d = 0; d < int64_t(sizes.size()); ++d) {
      if (d < draw.batch_dimension) outer *= sizes[size_t(d)];
      if (d > draw.batch_dimension) inner *= sizes[size_t(d)];
    }
    const char* const at = static_cast<const char*>(draw.numbers.const_data_ptr());
    if (inner == 1) {
      out.push_back({at, outer, 1, batch});
      return;
    }
    for (int64_t i = 0; i < outer; ++i) {
      const int64_t offset = i * batch * inner * int64_t(draw.numbers.element_size());
      out.push_back({at + offset, inner, inner, 1});
    }
  }

  const at::ScalarType dtype_;
  const int64_t parts_, work_;
  const std::vector<int64_t> sizes_;
  std::unique_ptr<GeneratedLoss<float>> single_;
  std::unique_ptr<GeneratedLoss<double>> twice_;
};

std::optional<at::Generator> generator_of(py::handle x) {
  if (x.is_none()) return std::nullopt;
  TORCH_CHECK_TYPE(THPGenerator_Check(x.ptr()), "a generator must be a torch.Generator");
  return reinterpret_cast<THPGenerator*>(x.ptr())->cdata;
}

// The norm of a gradient, and the gradient within the bound, as torch.nn.utils.clip_grad_norm_ has
// it.
double clip_norm(const Tensor& gradients, double most) {
  double norm = 0;
  dispatch_real(gradients.scalar_type(), [&]<class T>(T*) {
    T* const g = gradients.mutable_data_ptr<T>();
    const int64_t count = gradients.numel();
    constexpr int64_t kSums = 16;
    double sums[kSums] = {};
    int64_t i = 0;
    for (; i + kSums <= count; i += kSums) {
      for (int64_t j = 0; j < kSums; ++j) sums[j] += double(g[i + j]) * double(g[i + j]);
    }
    for (; i < count; ++i) sums[0] += double(g[i]) * double(g[i]);
    for (const double each : sums) norm += each;
    norm = std::sqrt(norm);
    const T factor = T(most / (norm + 1e-6));
    if (factor < 1) {
      for (int64_t j = 0; j < count; ++j) g[j] *= factor;
    }
  });
  return norm;
}

// Whether the user wants a long sequence of steps to end, asked some twenty times a second.
class Pause {
 public:
  bool requested() {
    const auto now = std::chrono::steady_clock::now();
    if (now - asked_ < std::chrono::milliseconds(50)) return false;
    asked_ = now;
    return interrupt_question()();
  }

 private:
  std::chrono::steady_clock::time_point asked_ = std::chrono::steady_clock::now();
};

// Steps on batches of rows: picked [steps, batch], or one step on all rows. Each draws its random
// numbers, computes loss and gradients, and unless the loss is not finite updates the parameters.
// Returns how the last one ended, and the parts of each loss [steps, parts].
py::tuple train_steps(LossCode& code, const std::vector<Tensor>& inputs, std::vector<Tensor> rows,
                      const std::optional<Tensor>& picked, const py::list& drawn, bool mean,
                      const std::vector<Update>& updates, std::optional<double> clip,
                      const std::optional<Tensor>& row_gradients) {
  const int64_t steps = picked ? picked->size(0) : 1;
  const int64_t batch = picked ? picked->size(1) : rows.at(0).size(0);
  std::vector<Draw> draws;
  std::vector<std::optional<at::Generator>> generators;
  for (const py::handle each : drawn) {
    const auto one = py::reinterpret_borrow<py::tuple>(each);
    draws.push_back({one[0].cast<bool>(), one[1].cast<Tensor>(), one[2].cast<int64_t>()});
    generators.push_back(generator_of(one[3]));
  }
  // Of one step in the dtype of the loss, for the caller; of many for sums over them.
  const Tensor losses = at::empty({steps, code.parts()}, picked ? at::kDouble : code.dtype());
  std::vector<double> now(size_t(code.parts()));
  StepEnding ending = StepEnding::kDone;
  code.done = 0;
  if (!code.fits(inputs)) return py::make_tuple(int(StepEnding::kOutdated), losses);
  for (Tensor& each : rows) each = each.contiguous();
  {
    const py::gil_scoped_release release;
    const at::NoGradGuard no_grad;
    Pause pause;
    for (int64_t step = 0; step < steps && ending == StepEnding::kDone; ++step) {
      for (size_t i = 0; i < draws.size(); ++i) {
        if (draws[i].normal)
          draws[i].numbers.normal_(0, 1, generators[i]);
        else
          draws[i].numbers.uniform_(0, 1, generators[i]);
      }
      const int64_t* const these =
          picked ? picked->const_data_ptr<int64_t>() + step * batch : nullptr;
      const LossEnding loss = code.run(inputs, rows, these, batch, draws, mean, now.data(),
                                       row_gradients.value_or(Tensor()));
      if (loss != LossEnding::kDone) {
        ending =
            loss == LossEnding::kOutOfRange ? StepEnding::kOutOfRange : StepEnding::kInterrupted;
        break;
      }
      dispatch_real(losses.scalar_type(), [&]<class T>(T*) {
        std::copy(now.begin(), now.end(), losses.mutable_data_ptr<T>() + step * code.parts());
      });
      bool finite = std::isfinite(now[0]);
      if (finite && clip) finite = std::isfinite(clip_norm(code.gradients, *clip));
      if (!finite) {
        ending = StepEnding::kNotFinite;
        break;
      }
      for (const Update& each : updates) each.rule->apply(each.settings);
      ++code.done;
      if (step + 1 < steps && pause.requested()) ending = StepEnding::kInterrupted;
    }
  }
  if (ending == StepEnding::kInterrupted) throw py::error_already_set();
  return py::make_tuple(int(ending), losses);
}

}  // namespace

void bind_train_step(py::module_& m) {
  py::class_<LossCode>(m, "LossCode")
      .def(py::init([](int64_t address, bool twice, int64_t numbers, int64_t parts, int64_t of_rows,
                       std::vector<int64_t> sizes, int64_t multiplications) {
        return LossCode(address, twice ? at::kDouble : at::kFloat, numbers, parts, of_rows,
                        std::move(sizes), multiplications);
      }))
      .def_readonly("gradients", &LossCode::gradients)
      .def_readonly("done", &LossCode::done)
      .def_readwrite("least", &LossCode::least)
      .def_readwrite("most", &LossCode::most);
  py::class_<OptimizerUpdate, std::shared_ptr<OptimizerUpdate>>(m, "OptimizerUpdate")
      .def(py::init([](int rule, std::vector<Tensor> parameters, std::vector<Tensor> gradients,
                       std::vector<Tensor> first, std::vector<Tensor> second,
                       std::vector<Tensor> largest, std::vector<Tensor> steps) {
        return OptimizerUpdate{UpdateRule(rule), std::move(parameters), std::move(gradients),
                               std::move(first), std::move(second),     std::move(largest),
                               std::move(steps)};
      }))
      .def_readwrite("gradients", &OptimizerUpdate::gradients);
  py::class_<Update>(m, "Update")
      .def(py::init([](std::shared_ptr<OptimizerUpdate> rule, double lr, double beta1, double beta2,
                       double eps, double weight_decay, bool amsgrad, bool maximize, bool nesterov,
                       bool first_step) {
        return Update{
            std::move(rule),
            {lr, beta1, beta2, eps, weight_decay, amsgrad, maximize, nesterov, first_step}};
      }))
      .def("apply", [](const Update& each) {
        const py::gil_scoped_release release;
        each.rule->apply(each.settings);
      });
  m.def("train_steps", &train_steps);
}

}  // namespace fastnode
