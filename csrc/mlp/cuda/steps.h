// Runge-Kutta arithmetic on the samples of a block.
#pragma once

#include "kernels/rk/rk_error.h"
#include "mlp/cuda/field.h"
#include "step_control/rk_times.h"

namespace fastnode {

// One thread of a block. An `Alone` one has a sample to itself and never waits for another. `Far`
// is plan.global_weights, known to the compiler: many loads in flight take registers, of which
// blocks with their weights in shared memory need fewer, so that more of them are resident on a
// multiprocessor.
//
// Each feature of a state belongs to one thread, which alone reads and writes it here.
template <class T, bool Alone, bool Far>
struct MlpSteps {
  const MlpTask<T>& task;
  const int samples, groups, s, g;
  MlpMemory<T> memory;

  __device__ explicit MlpSteps(const MlpTask<T>& all, bool joint)
      : MlpSteps(all, lay(all, joint)) {}

  __device__ MlpSteps(const MlpTask<T>& all, const MlpMemory<T>& laid)
      : task(all),
        samples(all.plan.samples),
        groups(Alone ? 1 : all.plan.groups),
        s(Alone ? int(threadIdx.x) : int(threadIdx.x) % all.plan.samples),
        g(Alone ? 0 : int(threadIdx.x) / all.plan.samples),
        memory(laid) {
    if (threadIdx.x == 0) {
      *memory.table = {all.field,
                       samples,
                       groups,
                       offset_of(memory.weights),
                       offset_of(memory.first),
                       offset_of(memory.second),
                       offset_of(memory.parts),
                       all.plan.tensor};
    }
    if constexpr (Far) {
      if (threadIdx.x == 0) *reinterpret_cast<const T**>(memory.weights) = all.packed;
    } else {
      for (int l = 0; l < all.field.count; ++l) {
        pack_layer(all.field.layers[l], memory.weights, int(threadIdx.x), samples * groups);
      }
    }
    __syncthreads();
  }

  // A barrier for the threads that share a sample.
  __device__ void synchronize() const {
    if constexpr (!Alone) __syncthreads();
  }
  // The same, and whether `mine` is true in one of them.
  __device__ bool any(bool mine) const {
    if constexpr (Alone) return mine;
    return __syncthreads_or(mine) != 0;
  }

  __device__ int index(int feature) const { return feature * samples + s; }
  __device__ T* k(int stage) const { return memory.k + int64_t(stage) * task.field.dim * samples; }

  // out = field(time, x).
  __device__ void evaluate(T time, const T* x, T* out) const {
    mlp_evaluate<T, Alone, Far>(time, offset_of(x), offset_of(out));
  }

  // f(feature, its index in a tile) for this thread's features.
  template <class F>
  __device__ void each(F f) const {
    for (int d = g; d < task.field.dim; d += groups) f(d, index(d));
  }

  __device__ void load(const T* rows, int64_t sample, T* to) const {
    each([&](int d, int i) { to[i] = rows[sample * task.field.dim + d]; });
  }
  __device__ void store(const T* from, T* rows, int64_t sample) const {
    each([&](int d, int i) { rows[sample * task.field.dim + d] = from[i]; });
  }

  // scale sum_j weights_j k_j at index i.
  __device__ T sum(const double* weights, int count, double scale, int i) const {
    const int64_t size = int64_t(task.field.dim) * task.plan.samples;
    const T* k = memory.k + i;
    T total = 0;
    for (int j = 0; j < count; ++j, k += size) {
      if (weights[j] != 0) total = add_term(total, T(scale * weights[j]), *k);
    }
    return total;
  }

  __device__ void combine(const double* weights, int count, double scale, T* out) const {
    each([&](int, int i) { out[i] = memory.y[i] + sum(weights, count, scale, i); });
  }

  // All stages after the first, and y1. Stages at the end are evaluated just before it, or at it
  // unless `before_end`.
  __device__ void take_stages(const Course& course, bool before_end) const {
    const DeviceTableau& tableau = task.tableau;
    for (int i = 1; i < tableau.stages; ++i) {
      combine(tableau.row(i), i, course.step, memory.stage);
      synchronize();
      const double c = tableau.fractions[i];
      const T time = c == 1 && !before_end ? as_time<T>(course.t1) : stage_time<T>(course, c);
      evaluate(time, memory.stage, k(i));
    }
    if (!tableau.fsal) combine(tableau.solution, tableau.stages, course.step, memory.y1);
  }

  // Those that only dense output needs, of a step from t to t1.
  __device__ void take_further_stages(double t, double t1) const {
    const DeviceTableau& tableau = task.tableau;
    const double step = t1 - t;
    for (int i = tableau.stages; i < tableau.stages + tableau.further; ++i) {
      combine(tableau.row(i), i, step, memory.further);
      synchronize();
      evaluate(as_time<T>(t + rounded_product(tableau.fractions[i], step)), memory.further, k(i));
    }
  }

  // This thread's part of the sum of squares of what(index) over the tolerances.
  template <class F>
  __device__ double squares(const T* after, T rtol, T atol, F what) const {
    T total = 0;
    each([&](int, int i) {
      const T ratio = over_tolerance<T>(what(i), memory.y[i], after[i], rtol, atol);
      total += ratio * ratio;
    });
    return double(total);
  }

  // Of the error and, where there is an estimate of stiffness, of its two parts.
  __device__ void measure(const Course& course, double rtol, double atol, double (&out)[3]) const {
    const DeviceTableau& tableau = task.tableau;
    const auto weighted = [&](const double* weights, double scale) {
      return [&, weights, scale](int i) { return sum(weights, tableau.stages, scale, i); };
    };
    out[0] = squares(memory.y1, T(rtol), T(atol), weighted(tableau.error, course.step));
    out[1] = out[2] = 0;
    if (tableau.stability == 0) return;
    out[1] = squares(memory.y, T(0), T(1), weighted(tableau.derivatives, 1));
    out[2] = squares(memory.y, T(0), T(1), weighted(tableau.states, 1));
  }

  // Whether outputs lie inside the step that was accepted last, not only at its end.
  __device__ static bool inside(const Control& control, const double* times) {
    return control.made < control.next && times[control.made] != control.course.t;
  }

  __device__ void save(const Control& control, const double* times, int64_t sample) const {
    const DeviceTableau& tableau = task.tableau;
    const double t0 = control.course.t_before, t1 = control.course.t;
    const int stages = tableau.stages + tableau.further;
    const int64_t size = int64_t(task.field.dim) * task.plan.samples;
    for (int64_t output = control.made; output < control.next; ++output) {
      T* const to = task.ys + output * task.batch * task.field.dim;
      const double time = times[output];
      if (time == t1) {
        store(memory.y1, to, sample);
        continue;
      }
      each([&](int d, int i) {
        T total = 0;
        for (int j = 0; j < stages; ++j) {
          const double weight = dense_weight(tableau, j, t0, t1, time);
          if (weight != 0) total = add_term(total, T(weight), memory.k[j * size + i]);
        }
        to[sample * task.field.dim + d] = memory.y[i] + total;
      });
    }
  }

  // Where the step that was accepted last began, if gradients need it.
  __device__ void keep(const Course& course, int64_t sample) const {
    if (task.kept == nullptr) return;
    const int64_t step = course.accepted - 1 - task.records.base;
    T* const to = task.kept + 2 * step * task.batch * task.field.dim;
    store(memory.y, to, sample);
    store(k(0), to, task.batch + sample);
  }

  // The next step begins where the one that was accepted ends.
  __device__ void move_on() const {
    const T* const last = k(task.tableau.stages - 1);
    each([&](int, int i) {
      memory.y[i] = memory.y1[i];
      memory.k[i] = last[i];
    });
  }

  // 1 for NaN, 2 for an infinity in the first stage derivatives of this thread's features.
  __device__ int seen(int stages) const {
    int found = 0;
    for (int j = 0; j < stages; ++j) {
      const T* const x = k(j);
      each([&](int, int i) {
        if (x[i] != x[i]) found |= 1;
        if (x[i] == x[i] && x[i] - x[i] != 0) found |= 2;
      });
    }
    return found;
  }

  __device__ void note(const Course& course, int64_t row, double error, double stiffness) const {
    const MlpRecords& records = task.records;
    const int64_t i = (course.accepted - 1 - records.base) * records.rows + row;
    records.ends[i] = course.t;
    records.errors[i] = error;
    records.stiffness[i] = stiffness;
  }

  __device__ bool full(const Course& course) const {
    return course.accepted - task.records.base == task.records.capacity;
  }

 private:
  __device__ static MlpMemory<T> lay(const MlpTask<T>& all, bool joint) {
    MlpMemory<T> memory;
    memory.lay(shared_memory(), all.field, all.tableau, all.plan, joint);
    return memory;
  }
};

}  // namespace fastnode
