#include "common/pack.h"
#include "step_control/rk_control.h"
#include "step_control/rk_times.h"

namespace fastnode {
namespace {

// One warp decides: its first thread, and then a stage's time each.
constexpr int kWarp = 32;
static_assert(kMaxTerms <= kWarp);

template <class T>
__device__ void set_times(const Course& course, const StageTimes<T>& times) {
  const int i = threadIdx.x;
  if (i == 0 || i >= times.count) return;
  times.out[i] = stage_time<T>(course, times.fractions[i]);
}

template <class T>
__global__ void rk_trial_kernel(Control* control, const acc_t<T>* d0, const acc_t<T>* d1, int parts,
                                const double* end, T* time) {
  Course& course = control->course;
  plan_trial(course, worst(d0, parts), worst(d1, parts), *end);
  *time = as_time<T>(course.t + course.step);
}

template <class A>
__global__ void rk_first_kernel(Control* control, const __grid_constant__ Controller controller,
                                const A* d1, const A* difference, int parts) {
  plan_first(control->course, controller, worst(d1, parts), worst(difference, parts),
             PortablePower());
}

template <class T>
__global__ void __launch_bounds__(kWarp)
    rk_begin_kernel(Control* control, const __grid_constant__ Span span,
                    const __grid_constant__ StageTimes<T> times) {
  if (threadIdx.x == 0) {
    control->made = control->next;
    control->moved = false;
    prepare(*control, span);
  }
  __syncwarp();
  set_times(control->course, times);
}

template <class T>
__global__ void __launch_bounds__(kWarp)
    rk_control_kernel(Control* control, const __grid_constant__ Span span, const acc_t<T>* norms,
                      int parts, const __grid_constant__ StageTimes<T> times) {
  if (threadIdx.x == 0) {
    Control here = *control;
    conclude(here, span, worst(norms, parts), PortablePower());
    *control = here;
  }
  __syncwarp();
  set_times(control->course, times);
}

template <class T>
__global__ void __launch_bounds__(kWarp)
    rk_place_kernel(Control* control, const double* numbers,
                    const __grid_constant__ StageTimes<T> times) {
  if (threadIdx.x == 0) {
    place(control->course, numbers);
    times.out[0] = first_time<T>(control->course, numbers);
  }
  __syncwarp();
  set_times(control->course, times);
}

template <class A>
__global__ void rk_note_kernel(const Control* control, const A* norms, double stability,
                               double* stiffness) {
  note_stiffness(*control, norms, stability, stiffness);
}

// Each thread has the same elements from beginning to end: y and f are overwritten when all that is
// made of them is there.
template <int Size, class T>
__global__ void __launch_bounds__(kThreads, kResident)
    rk_commit_kernel(const Control* control, const double* outputs,
                     const __grid_constant__ DenseTerms<T> dense,
                     const __grid_constant__ Places<T> places) {
  using A = acc_t<T>;
  using Elements = Items<Size, T>;
  if (!control->moved) return;
  __shared__ A weights[kMaxTerms];
  const int64_t numel = places.numel;
  const int64_t first = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * Size;
  const int64_t stride = int64_t(gridDim.x) * kThreads * Size;
  const double t0 = control->course.t_before, t1 = control->course.t;
  if (places.starts != nullptr) {
    T* start = places.starts + (control->noted - 1) * numel;
    for (int64_t i = first; i < numel; i += stride) {
      Elements::put(start, i, Elements::read(places.y, i));
    }
  }
  const int64_t next = control->next;
  for (int64_t slot = control->made; slot < next; ++slot) {
    T* out = places.outputs + slot * numel;
    const double time = outputs[slot];
    if (time == t1) {
      for (int64_t i = first; i < numel; i += stride) {
        Elements::put(out, i, Elements::read(places.y1, i));
      }
      continue;
    }
    __syncthreads();
    const int j = threadIdx.x;
    if (j < dense.count) weights[j] = A(dense_weight(dense, j, t0, t1, time));
    __syncthreads();
    for (int64_t i = first; i < numel; i += stride) {
      Elements items{};
      items.add(dense.k, WeightsAt<A>{weights}, dense.count, i);
      // Read last: before the sums it would not fit into the registers beside them.
      items.add_to(Elements::read(places.y, i));
      items.write(out, i);
    }
  }
  for (int64_t i = first; i < numel; i += stride) {
    const auto y1 = Elements::read(places.y1, i);
    const auto f1 = Elements::read(places.f1, i);
    Elements::put(places.y, i, y1);
    Elements::put(places.f, i, f1);
  }
}

cudaStream_t stream_of(void* cuda_stream) { return static_cast<cudaStream_t>(cuda_stream); }

template <class T>
int commit(const Control* control, const Span& span, const DenseTerms<T>& dense,
           const Places<T>& places, void* cuda_stream) {
  constexpr int kSize = kPack<T>;
  const Places<T>& p = places;
  if (p.numel == 0) return cudaSuccess;
  const bool wide = p.numel % kSize == 0 && aligned(p.y) && aligned(p.f) && aligned(p.y1) &&
                    aligned(p.f1) && aligned(p.outputs) && aligned(p.starts) && all_aligned(dense);
  if (wide) {
    rk_commit_kernel<kSize><<<blocks_for(p.numel / kSize), kThreads, 0, stream_of(cuda_stream)>>>(
        control, span.outputs, dense, places);
  } else {
    rk_commit_kernel<1><<<blocks_for(p.numel), kThreads, 0, stream_of(cuda_stream)>>>(
        control, span.outputs, dense, places);
  }
  return cudaGetLastError();
}

}  // namespace

#define FASTNODE_DEFINE_RK_CONTROL(T)                                                        \
  int rk_trial_cuda(Control* control, const acc_t<T>* d0, const acc_t<T>* d1, int parts,     \
                    const double* end, T* time, void* cuda_stream) {                         \
    rk_trial_kernel<<<1, 1, 0, stream_of(cuda_stream)>>>(control, d0, d1, parts, end, time); \
    return cudaGetLastError();                                                               \
  }                                                                                          \
  int rk_begin_cuda(Control* control, const Span& span, const StageTimes<T>& times,          \
                    void* cuda_stream) {                                                     \
    rk_begin_kernel<<<1, kWarp, 0, stream_of(cuda_stream)>>>(control, span, times);          \
    return cudaGetLastError();                                                               \
  }                                                                                          \
  int rk_place_cuda(Control* control, const double* numbers, const StageTimes<T>& times,     \
                    void* cuda_stream) {                                                     \
    rk_place_kernel<<<1, kWarp, 0, stream_of(cuda_stream)>>>(control, numbers, times);       \
    return cudaGetLastError();                                                               \
  }                                                                                          \
  int rk_control_cuda(Control* control, const Span& span, const acc_t<T>* norms, int parts,  \
                      const StageTimes<T>& times, void* cuda_stream) {                       \
    rk_control_kernel<T>                                                                     \
        <<<1, kWarp, 0, stream_of(cuda_stream)>>>(control, span, norms, parts, times);       \
    return cudaGetLastError();                                                               \
  }                                                                                          \
  int rk_commit_cuda(const Control* control, const Span& span, const DenseTerms<T>& dense,   \
                     const Places<T>& places, void* cuda_stream) {                           \
    return commit(control, span, dense, places, cuda_stream);                                \
  }
FASTNODE_DEFINE_RK_CONTROL(float)
FASTNODE_DEFINE_RK_CONTROL(double)
FASTNODE_DEFINE_RK_CONTROL(BFloat16)
FASTNODE_DEFINE_RK_CONTROL(Half)
#undef FASTNODE_DEFINE_RK_CONTROL

#define FASTNODE_DEFINE_RK_FIRST(A)                                                             \
  int rk_first_cuda(Control* control, const Controller& controller, const A* d1,                \
                    const A* difference, int parts, void* cuda_stream) {                        \
    rk_first_kernel<<<1, 1, 0, stream_of(cuda_stream)>>>(control, controller, d1, difference,   \
                                                         parts);                                \
    return cudaGetLastError();                                                                  \
  }                                                                                             \
  int rk_note_cuda(const Control* control, const A* norms, double stability, double* stiffness, \
                   void* cuda_stream) {                                                         \
    rk_note_kernel<<<1, 1, 0, stream_of(cuda_stream)>>>(control, norms, stability, stiffness);  \
    return cudaGetLastError();                                                                  \
  }
FASTNODE_DEFINE_RK_FIRST(float)
FASTNODE_DEFINE_RK_FIRST(double)
#undef FASTNODE_DEFINE_RK_FIRST

}  // namespace fastnode
