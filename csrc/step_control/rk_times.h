// Times of stages and weights of dense output, by the same functions on CPU and GPU.
#pragma once

#include "step_control/dense_output.h"
#include "step_control/rk_control.h"
#include "step_control/stiffness.h"

namespace fastnode {

template <class T>
struct BitsOf {
  using type = uint16_t;
};
template <>
struct BitsOf<float> {
  using type = uint32_t;
};
template <>
struct BitsOf<double> {
  using type = uint64_t;
};

// The number of T next to x in the direction of time.
template <class T>
FASTNODE_HD T next_number(T x, double direction) {
  using Bits = typename BitsOf<T>::type;
  constexpr Bits kSign = Bits(Bits(1) << (8 * sizeof(T) - 1));
  const acc_t<T> value = load(x);
  if (value - value != 0) return x;
  const Bits bits = bit_cast<Bits>(x);
  if (value == 0) return bit_cast<T>(direction < 0 ? Bits(kSign | 1) : Bits(1));
  // A number's bits grow with its size.
  return bit_cast<T>(Bits((value > 0) == (direction > 0) ? bits + 1 : bits - 1));
}

template <class T>
FASTNODE_HD T as_time(double t) {
  return store<T>(acc_t<T>(t));
}

// The same for a time, before (side -1) or after (1) it or at it (0).
template <class T>
FASTNODE_HD T shifted(double t, int side, double direction) {
  return side == 0 ? as_time<T>(t) : next_number(as_time<T>(t), side * direction);
}

// The time of a stage at the fraction c of the attempt (StageTimes).
template <class T>
FASTNODE_HD T stage_time(const Course& course, double c) {
  return c == 1 ? shifted<T>(course.t1, -1, course.direction)
                : as_time<T>(course.t + rounded_product(c, course.step));
}

// An attempt that was planned elsewhere: from numbers[0] to numbers[1].
FASTNODE_HD void place(Course& course, const double* numbers) {
  course.t = numbers[0];
  course.t1 = numbers[1];
  course.step = course.t1 - course.t;
}

// The time of its first stage, which for numbers[2] = 0 is the last one of a step before.
template <class T>
FASTNODE_HD T first_time(const Course& course, const double* numbers) {
  const T t = as_time<T>(course.t);
  return numbers[2] != 0 ? t : next_number(t, -course.direction);
}

// The same for stage j of a table of coefficients.
template <class Dense>
FASTNODE_HD double dense_weight(const Dense& dense, int j, double t0, double t1, double time) {
  return dense_weight(dense.a[j], dense.degree, t0, t1, time);
}

// p_j'(x): the weight of k_j in the derivative of the dense output there.
template <class Dense>
FASTNODE_HD double dense_derivative_weight(const Dense& dense, int j, double t0, double t1,
                                           double time) {
  return polynomial_derivative_at(dense.a[j], dense.degree, (time - t0) / (t1 - t0));
}

// The largest of the norms of a state's parts; NaN if one of them is.
template <class A>
FASTNODE_HD double worst(const A* norms, int parts) {
  double so_far = 0;
  for (int i = 0; i < parts; ++i) so_far = worse(so_far, double(norms[i]));
  return so_far;
}

// Stiffness of the step just tried, if it was accepted, from the norms of stiffness_of.
template <class A>
FASTNODE_HD void note_stiffness(const Control& control, const A* norms, double stability,
                                double* stiffness) {
  if (!control.moved) return;
  stiffness[control.noted - 1] = stiffness_of(norms[0], norms[1], stability);
}

// `place` on a CUDA stream, with the times of all stages; `numbers` lie on the device. Gives a
// cudaError_t.
#define FASTNODE_DECLARE_RK_PLACE(T)                                                     \
  int rk_place_cuda(Control* control, const double* numbers, const StageTimes<T>& times, \
                    void* cuda_stream);
FASTNODE_DECLARE_RK_PLACE(float)
FASTNODE_DECLARE_RK_PLACE(double)
FASTNODE_DECLARE_RK_PLACE(BFloat16)
FASTNODE_DECLARE_RK_PLACE(Half)
#undef FASTNODE_DECLARE_RK_PLACE

}  // namespace fastnode
