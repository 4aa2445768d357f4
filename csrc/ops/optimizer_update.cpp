#include "ops/optimizer_update.h"

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_sgd.h>

#include <cmath>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include "ops/common.h"

namespace fastnode {
namespace {

using at::Tensor;

constexpr int64_t kNumbersAtOnce = 16384;

// Averages of gradients that are zero, as of units that a ReLU has switched off, decay to numbers
// below the least normal one and stay there; each operation on one takes some hundred cycles, which
// made the update of a small net six times slower. Here they become zero. That moves no parameter,
// as eps is far larger than all of them. Only in this thread: others are woken for large tensors.
class TinyNumbersAreZero {
 public:
#if defined(__SSE2__)
  explicit TinyNumbersAreZero(bool wanted) {
    if (wanted) _mm_setcsr(before_ | 0x8040);
  }
  ~TinyNumbersAreZero() { _mm_setcsr(before_); }

 private:
  const unsigned before_ = _mm_getcsr();
#else
  explicit TinyNumbersAreZero(bool) {}
#endif
};

template <class T>
void adamax(T* p, const T* g, T* average, T* largest, int64_t count, double step,
            const UpdateSettings& s) {
  const T beta1 = T(s.beta1), beta2 = T(s.beta2), eps = T(s.eps), decay = T(s.weight_decay);
  const T rate = T(s.lr / (1 - std::pow(s.beta1, step)));
  const T sign = s.maximize ? T(-1) : T(1);
  at::parallel_for(0, count, kNumbersAtOnce, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T of = sign * g[i] + decay * p[i];
      average[i] += (1 - beta1) * (of - average[i]);
      const T before = largest[i] * beta2, now = std::fabs(of) + eps;
      // NaN stays, as in torch.maximum.
      largest[i] = now >= before || now != now ? now : before;
      p[i] -= rate * average[i] / largest[i];
    }
  });
}

}  // namespace

void OptimizerUpdate::apply(const UpdateSettings& s) const {
  const at::NoGradGuard no_grad;
  const TinyNumbersAreZero tiny(s.eps > 1e-30);
  for (const Tensor& step : steps) {
    dispatch_real(step.scalar_type(), [&]<class T>(T*) { *step.mutable_data_ptr<T>() += 1; });
  }
  switch (rule) {
    case UpdateRule::kAdam:
      at::_fused_adam_(parameters, gradients, first, second, largest, steps, s.lr, s.beta1, s.beta2,
                       s.weight_decay, s.eps, s.amsgrad, s.maximize);
      return;
    case UpdateRule::kAdamW:
      at::_fused_adamw_(parameters, gradients, first, second, largest, steps, s.lr, s.beta1,
                        s.beta2, s.weight_decay, s.eps, s.amsgrad, s.maximize);
      return;
    case UpdateRule::kSgd:
      at::_fused_sgd_(parameters, gradients, first, s.weight_decay, s.beta1, s.lr, s.beta2,
                      s.nesterov, s.maximize, s.first_step);
      return;
    case UpdateRule::kAdamax:
      break;
  }
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Tensor& p = parameters[i];
    double step = 0;
    dispatch_real(steps[i].scalar_type(),
                  [&]<class T>(T*) { step = double(*steps[i].const_data_ptr<T>()); });
    dispatch_real(p.scalar_type(), [&]<class T>(T*) {
      adamax<T>(p.mutable_data_ptr<T>(), gradients[i].const_data_ptr<T>(),
                first[i].mutable_data_ptr<T>(), second[i].mutable_data_ptr<T>(), p.numel(), step,
                s);
    });
    p.unsafeGetTensorImpl()->bump_version();
  }
}

}  // namespace fastnode
