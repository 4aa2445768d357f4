// sum_j c_j k_j: the linear combination of stages that every Runge-Kutta kernel is made of.
//
// A state is y + sum_j c_j k_j with the sum made first, from zero, and y added last: term by term
// onto y each would be rounded as numbers of y's size are, and a step that is small beside y would
// lose digits at every stage. From zero, and not from c_0 k_0, as a compiler could then contract
// the first addition in two ways.
#pragma once

#include "common/scalar.h"

namespace fastnode {

// Enough for every explicit method in use (14 stages) with room for dense output.
constexpr int kMaxTerms = 32;

template <class T>
struct Terms {
  const T* k[kMaxTerms];
  acc_t<T> c[kMaxTerms];
  int count;
};

// Stages whose weights are h w_j, with h in device memory: what changes from step to step cannot be
// an argument of a launch that a captured graph repeats.
template <class T>
struct StepTerms {
  const T* k[kMaxTerms];
  double w[kMaxTerms];
  const double* h;
  int count;
};

template <class A>
FASTNODE_HD A add_term(A sum, A c, A k) {
  return sum + c * k;
}

template <int Group, class T>
FASTNODE_HD void add_group(acc_t<T>* __restrict__ sum, const T* const* k, const acc_t<T>* c,
                           int64_t start, int64_t n) {
  const T* __restrict__ from[Group];
  acc_t<T> weight[Group];
  for (int j = 0; j < Group; ++j) {
    from[j] = k[j] + start;
    weight[j] = c[j];
  }
  for (int64_t i = 0; i < n; ++i) {
    acc_t<T> total = sum[i];
    for (int j = 0; j < Group; ++j) {
      total = add_term(total, weight[j], acc_t<T>(load(from[j][i])));
    }
    sum[i] = total;
  }
}

// sum[i] += sum_j c[j] k[j][start + i] for n elements, in the order of j. With four stages a pass
// the sums cross the first-level cache a quarter as often.
template <class T>
FASTNODE_HD void add_terms(acc_t<T>* sum, const T* const* k, const acc_t<T>* c, int count,
                           int64_t start, int64_t n) {
  int j = 0;
  for (; j + 4 <= count; j += 4) add_group<4>(sum, k + j, c + j, start, n);
  if (count - j == 3) add_group<3>(sum, k + j, c + j, start, n);
  if (count - j == 2) add_group<2>(sum, k + j, c + j, start, n);
  if (count - j == 1) add_group<1>(sum, k + j, c + j, start, n);
}

}  // namespace fastnode
