// As much of CUDA as our kernels use, on a CPU: blocks one after the other, each thread of a block
// a fiber that runs from one barrier to the next. For tests of what a kernel reads and writes where
// there is no GPU; it knows nothing of speed, races within a warp, or memory spaces.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorNotSupported = 801 };

namespace emulation {

struct Index {
  unsigned x = 0;
};

constexpr int kMostThreads = 1024;
constexpr size_t kStack = 64 * 1024;

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStack);
  bool done;
};

inline std::vector<Fiber> fibers(kMostThreads);
inline ucontext_t scheduler;
inline std::function<void()> body;
inline Index thread, block, grid;
inline int launches = 0;

inline void enter() {
  const unsigned self = thread.x;
  body();
  fibers[self].done = true;
  swapcontext(&fibers[self].context, &scheduler);
}

// Lets every other thread of the block come to its next barrier.
inline void barrier() {
  const unsigned self = thread.x;
  swapcontext(&fibers[self].context, &scheduler);
  thread.x = self;
}

inline void run_block(unsigned threads) {
  for (unsigned i = 0; i < threads; ++i) {
    getcontext(&fibers[i].context);
    fibers[i].context.uc_stack.ss_sp = fibers[i].stack.data();
    fibers[i].context.uc_stack.ss_size = kStack;
    fibers[i].context.uc_link = nullptr;
    fibers[i].done = false;
    makecontext(&fibers[i].context, enter, 0);
  }
  for (bool any = true; any;) {
    any = false;
    for (unsigned i = 0; i < threads; ++i) {
      if (fibers[i].done) continue;
      thread.x = i;
      swapcontext(&scheduler, &fibers[i].context);
      any = any || !fibers[i].done;
    }
  }
}

// kernel<<<blocks, threads, shared, stream>>>(arguments) is made into this.
template <class Kernel>
auto launch(Kernel kernel, unsigned blocks, unsigned threads, size_t, cudaStream_t) {
  return [=](auto... arguments) {
    if (blocks == 0 || threads == 0 || threads > kMostThreads) std::abort();
    // An argument of a launch is limited to 4 KiB in all.
    static_assert((sizeof(arguments) + ... + 0) <= 4096);
    ++launches;
    body = [&] { kernel(arguments...); };
    grid.x = blocks;
    for (block.x = 0; block.x < blocks; ++block.x) run_block(threads);
  };
}

inline double exchanged[kMostThreads];

}  // namespace emulation

#define threadIdx emulation::thread
#define blockIdx emulation::block
#define gridDim emulation::grid

inline void __syncthreads() { emulation::barrier(); }
inline void __syncwarp() { emulation::barrier(); }

inline double __shfl_down_sync(unsigned, double value, int offset, int width) {
  const int self = int(emulation::thread.x);
  emulation::exchanged[self] = value;
  emulation::barrier();
  const double other = self % width + offset < width ? emulation::exchanged[self + offset] : value;
  emulation::barrier();
  return other;
}

inline int cudaGetLastError() { return cudaSuccess; }

template <class A>
A min(A a, A b) {
  return b < a ? b : a;
}
