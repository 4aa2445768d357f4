// sum_j c_j k_j: the linear combination of stages that every Runge-Kutta kernel is made of.
#pragma once

#include "kernels/scalar.h"

namespace fastnode {

// Enough for every explicit method in use (14 stages) with room for dense output.
constexpr int kMaxTerms = 32;

template <class T>
struct Terms {
  const T* k[kMaxTerms];
  acc_t<T> c[kMaxTerms];
  int count;
};

template <class A>
FASTNODE_HD A add_term(A sum, A c, A k) {
  return sum + c * k;
}

}  // namespace fastnode
