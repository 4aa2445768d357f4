#include "driver/adams.h"

#include <ATen/ops/sub.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "ops/common.h"

namespace fastnode {
namespace {

const std::vector<int>& first_stage() {
  static const std::vector<int> only{0};
  return only;
}

// The weights of int_0^1 for distinct nodes, which descend: fastnode.tableaus.adams.uneven_weights,
// by elimination with pivots.
std::vector<double> uneven_weights(const std::vector<double>& nodes) {
  const size_t n = nodes.size();
  const double low = std::min(nodes.back(), 0.0), high = std::max(nodes.front(), 1.0);
  const double shift = (high + low) / 2, scale = (high - low) / 2;
  const double start = -shift / scale, end = (1 - shift) / scale;
  // A row for each power, and its integral in the last column.
  std::vector<std::vector<double>> rows(n, std::vector<double>(n + 1));
  double of_start = start, of_end = end;
  for (size_t p = 0; p < n; ++p) {
    for (size_t j = 0; j < n; ++j) {
      rows[p][j] = p == 0 ? 1 : rows[p - 1][j] * ((nodes[j] - shift) / scale);
    }
    rows[p][n] = (of_end - of_start) / (double(p + 1) * (end - start));
    of_start *= start;
    of_end *= end;
  }
  for (size_t p = 0; p < n; ++p) {
    size_t pivot = p;
    for (size_t i = p + 1; i < n; ++i) {
      if (std::abs(rows[i][p]) > std::abs(rows[pivot][p])) pivot = i;
    }
    std::swap(rows[p], rows[pivot]);
    for (size_t i = p + 1; i < n; ++i) {
      const double factor = rows[i][p] / rows[p][p];
      for (size_t j = p; j <= n; ++j) rows[i][j] -= factor * rows[p][j];
    }
  }
  std::vector<double> weights(n);
  for (size_t p = n; p-- > 0;) {
    double rest = rows[p][n];
    for (size_t j = p + 1; j < n; ++j) rest -= rows[p][j] * weights[j];
    weights[p] = rest / rows[p][p];
  }
  return weights;
}

template <class T>
bool all_within(const T* before, const T* after, double rtol, double atol, int64_t begin,
                int64_t end) {
  using A = acc_t<T>;
  const A relative = A(rtol), absolute = A(atol);
  int64_t inside = 0;
  for (int64_t i = begin; i < end; ++i) {
    const A x = load(before[i]), y = load(after[i]);
    const A size = std::abs(x) < std::abs(y) ? std::abs(y) : std::abs(x);
    // False for NaN.
    inside += std::abs(y - x) < absolute + relative * size;
  }
  return inside == end - begin;
}

// The tolerances of a norm if they are numbers.
bool read_numbers(const py::object& values, std::vector<double>& out) {
  for (const py::handle each : values) {
    if (!PyFloat_Check(each.ptr())) return false;
    out.push_back(each.cast<double>());
  }
  return true;
}

}  // namespace

AdamsConvergence::AdamsConvergence(py::object norm, const at::Tensor& like, const Layout& layout)
    : norm_(norm), dtype_(like.scalar_type()), sizes_(layout.sizes) {
  if (!layout.is_tuple) sizes_ = {like.numel()};
  on_memory_ = like.is_cpu() && kernels_take(dtype_) && read_numbers(norm.attr("rtol"), rtol_) &&
               read_numbers(norm.attr("atol"), atol_);
}

bool AdamsConvergence::operator()(const at::Tensor& before, const at::Tensor& after) const {
  if (!on_memory_) {
    const c10::NoGradGuard no_grad;
    py::list change;
    change.append(wrap(at::sub(after, before)));
    return norm_(wrap(before), wrap(after), change, std::vector<double>{1.0}).cast<double>() < 1;
  }
  bool within = true;
  dispatch_floating(dtype_, "corrector", [&]<class T>(T*) {
    const WithoutGil nogil(before.numel());
    int64_t offset = 0;
    for (size_t part = 0; part < sizes_.size() && within; ++part) {
      within = all_within(data<T>(before), data<T>(after), rtol_[part], atol_[part], offset,
                          offset + sizes_[part]);
      offset += sizes_[part];
    }
  });
  return within;
}

AdamsSteps::AdamsSteps(const AdamsMethod& method, const at::Tensor& like, bool perturb,
                       std::optional<AdamsConvergence> convergence, int max_iters,
                       py::object on_failure)
    : method_(method),
      arithmetic_(like),
      perturb_(perturb),
      convergence_(std::move(convergence)),
      max_iters_(max_iters),
      on_failure_(std::move(on_failure)),
      start_(*method.start, like, perturb),
      zero_(at::zeros_like(like.detach(), like.options(), at::MemoryFormat::Contiguous)),
      past_(size_t(method.kept) + 1),
      times_(size_t(method.kept)),
      corrected_(3) {}

FixedSteps::Taken AdamsSteps::take(Field& field, double t, double t1, Handle& y) {
  for (at::Tensor& each : corrected_) each.reset();
  remember(field, t, y);
  if (count_ < kFewest) return start_.take_from(past_[0], field, t, t1, y);
  const double h = t1 - t;
  rise_.values = weights(h, false);
  rise_.stages.resize(size_t(count_));
  std::iota(rise_.stages.begin(), rise_.stages.end(), 0);
  if (!convergence_) return {past_, rise_};
  const at::Tensor predicted = sum(zero_, past_, rise_.stages, rise_.values.data());
  corrected_[0] = past_[0];
  corrected_[1] = corrected(field, t1, h, y.tensor(), predicted);
  rise_ = {{1}, {1.0}};
  return {corrected_, rise_};
}

// The derivative at the beginning of the step takes the place of the oldest.
void AdamsSteps::remember(Field& field, double t, Handle& y) {
  at::Tensor f = std::move(past_[size_t(method_.kept) - 1]);
  if (count_ < method_.kept) ++count_;
  std::move_backward(past_.begin(), past_.begin() + count_ - 1, past_.begin() + count_);
  std::move_backward(times_.begin(), times_.begin() + count_ - 1, times_.begin() + count_);
  field.release(f);
  field(t, y, perturb_ ? 1 : 0, f);
  past_[0] = std::move(f);
  times_[0] = t;
}

std::vector<double> AdamsSteps::weights(double h, bool implicit) const {
  const double now = times_[0], rounding = 1e-9 + 1e-15 * std::abs(now / h);
  std::vector<double> nodes, out;
  if (implicit) nodes.push_back(1);
  bool even = true;
  for (int j = 0; j < count_; ++j) {
    nodes.push_back((times_[size_t(j)] - now) / h);
    even = even && std::abs(nodes.back() + j) <= rounding * (j + 1);
  }
  out = even ? (implicit ? method_.moulton : method_.bashforth)[size_t(count_) - 1]
             : uneven_weights(nodes);
  for (double& each : out) each *= h;
  return out;
}

at::Tensor AdamsSteps::sum(const at::Tensor& y, const StageDerivatives& k,
                           const std::vector<int>& stages, const double* c) const {
  Handle out;
  arithmetic_.combine(y, k, stages, c, out);
  return out.tensor();
}

// The increment of the step by the implicit method, from that by the explicit one.
at::Tensor AdamsSteps::corrected(Field& field, double t1, double h, const at::Tensor& y,
                                 at::Tensor rise) {
  const std::vector<double> c = weights(h, true);
  const at::Tensor known = sum(zero_, past_, rise_.stages, c.data() + 1);
  const double one = 1;
  StageDerivatives only(1);
  at::Tensor f;
  for (int i = 0; i < max_iters_; ++i) {
    const at::Tensor before = std::move(rise);
    only[0] = before;
    arithmetic_.combine(y, only, first_stage(), &one, stage_);
    field.release(f);
    field(t1, stage_, perturb_ ? -1 : 0, f);
    only[0] = f;
    rise = sum(known, only, first_stage(), c.data());
    only[0].reset();
    if ((*convergence_)(before, rise)) return rise;
  }
  on_failure_();
  past_[size_t(--count_)].reset();
  return rise;
}

}  // namespace fastnode
