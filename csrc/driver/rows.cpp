#include "driver/rows.h"

#include <ATen/ops/empty.h>

#include <cstring>

#include "kernels/rk/rk_rows.h"
#include "ops/common.h"

namespace fastnode {
namespace {

int64_t width_of(const at::Tensor& x) { return x.size(0) == 0 ? 0 : x.numel() / x.size(0); }

template <class F>
void for_rows(const at::Tensor& y, F&& f) {
  const WithoutGil nogil(y.numel());
  const int64_t at_once = kGrain / std::max<int64_t>(1, width_of(y));
  at::parallel_for(0, y.size(0), std::max<int64_t>(1, at_once), f);
}

}  // namespace

void combine_rows(const at::Tensor& y, const StageDerivatives& k, const Weights& weights,
                  const std::vector<double>& h, const at::Tensor& out) {
  dispatch_real(y.scalar_type(), [&]<class T>(T*) {
    const Terms<T> terms = row_terms<T>(k, weights);
    for_rows(y, [&](int64_t begin, int64_t end) {
      rk_stage_rows_range(y.const_data_ptr<T>(), terms, h.data(), begin, end, width_of(y),
                          out.mutable_data_ptr<T>());
    });
  });
}

void norm_rows(const at::Tensor& y0, const at::Tensor& y1, const StageDerivatives& k,
               const Weights& weights, const std::vector<double>& h,
               const std::vector<double>& rtol, const std::vector<double>& atol,
               std::vector<double>& out) {
  out.resize(y0.size(0));
  dispatch_real(y0.scalar_type(), [&]<class T>(T*) {
    const Terms<T> terms = row_terms<T>(k, weights);
    std::vector<T> norm(y0.size(0));
    for_rows(y0, [&](int64_t begin, int64_t end) {
      rk_error_rows_range(y0.const_data_ptr<T>(), y1.const_data_ptr<T>(), terms, h.data(),
                          rtol.data(), atol.data(), begin, end, width_of(y0), norm.data());
    });
    std::copy(norm.begin(), norm.end(), out.begin());
  });
}

at::Tensor take_rows(const at::Tensor& x, const std::vector<int64_t>& rows) {
  std::vector<int64_t> shape = x.sizes().vec();
  shape[0] = int64_t(rows.size());
  const at::Tensor out = at::empty(shape, x.options());
  const int64_t bytes = width_of(x) * x.element_size();
  const char* from = static_cast<const char*>(x.const_data_ptr());
  char* to = static_cast<char*>(out.mutable_data_ptr());
  for (int64_t row : rows) {
    std::memcpy(to, from + row * bytes, bytes);
    to += bytes;
  }
  return out;
}

}  // namespace fastnode
