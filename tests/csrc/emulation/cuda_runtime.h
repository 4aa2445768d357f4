// As much of CUDA as our kernels use, on a CPU: each thread of a block a fiber that runs from one
// barrier to the next. Blocks run one after the other, those of a cooperative launch all together.
// For tests of what a kernel reads and writes where there is no GPU; it says nothing about speed,
// races within a warp, or memory spaces.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __grid_constant__

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorNotSupported = 801 };

namespace emulation {

struct Index {
  unsigned x = 0;
};

constexpr unsigned kMostThreads = 1024, kWarp = 32;
constexpr size_t kStack = 64 * 1024;
// A device of two processors, each with one block at a time.
constexpr int kProcessors = 2, kSharedMemory = 227 * 1024;

// Threads that wait for each other.
struct Meeting {
  unsigned members = 0, arrived = 0, turn = 0;

  void complete() {
    if (arrived == 0 || arrived < members) return;
    arrived = 0;
    ++turn;
  }
};

struct Block {
  Meeting all;
  std::vector<Meeting> warps;
  // Poisoned: shared memory holds anything.
  std::vector<double> shared;
  double exchanged[kMostThreads];
  double factors[kMostThreads][6];
  bool vote = false;
};

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStack);
  unsigned thread, block;
  bool done;
};

inline std::vector<Fiber> fibers;
inline std::vector<Block> blocks;
inline ucontext_t scheduler;
inline std::function<void()> body;
inline Index thread, block, grid;
inline Fiber* self = nullptr;
inline int launches = 0;

inline Block& here() { return blocks[self->block]; }
inline Meeting& warp() { return here().warps[self->thread / kWarp]; }
inline unsigned char* shared() { return reinterpret_cast<unsigned char*>(here().shared.data()); }

inline void yield() { swapcontext(&self->context, &scheduler); }

inline void wait(Meeting& meeting) {
  const unsigned turn = meeting.turn;
  ++meeting.arrived;
  meeting.complete();
  while (meeting.turn == turn) yield();
}

inline void enter() {
  body();
  for (Meeting* each : {&here().all, &warp()}) {
    --each->members;
    each->complete();
  }
  self->done = true;
  yield();
}

// Blocks `first`, first + 1, ... together.
inline void run_blocks(unsigned first, unsigned count, unsigned threads, size_t bytes) {
  blocks.assign(count, Block());
  if (fibers.size() < count * threads) fibers.resize(count * threads);
  for (unsigned b = 0; b < count; ++b) {
    blocks[b].all.members = threads;
    blocks[b].warps.resize((threads + kWarp - 1) / kWarp);
    blocks[b].shared.assign(bytes / sizeof(double) + 1, NAN);
    for (unsigned i = 0; i < threads; ++i) {
      Fiber& fiber = fibers[b * threads + i];
      ++blocks[b].warps[i / kWarp].members;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.data();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = nullptr;
      fiber.thread = i;
      fiber.block = b;
      fiber.done = false;
      makecontext(&fiber.context, enter, 0);
    }
  }
  // Threads take their turns in an order that changes, and is the same in every run: what lacks a
  // barrier goes wrong sooner or later.
  std::vector<unsigned> order(count * threads);
  for (unsigned i = 0; i < order.size(); ++i) order[i] = i;
  static unsigned long long seed = 12345;
  for (bool any = true; any;) {
    any = false;
    for (unsigned i = order.size(); i-- > 1;) {
      seed = seed * 6364136223846793005ull + 1442695040888963407ull;
      std::swap(order[i], order[(seed >> 33) % (i + 1)]);
    }
    for (unsigned j = 0; j < count * threads; ++j) {
      const unsigned i = order[j];
      self = &fibers[i];
      if (self->done) continue;
      thread.x = self->thread;
      block.x = first + self->block;
      swapcontext(&scheduler, &self->context);
      any = any || !self->done;
    }
  }
}

template <class Kernel>
void run(Kernel kernel, unsigned count, unsigned threads, size_t bytes, bool together) {
  if (count == 0 || threads == 0 || threads > kMostThreads) std::abort();
  ++launches;
  body = kernel;
  grid.x = count;
  if (together) return run_blocks(0, count, threads, bytes);
  for (unsigned b = 0; b < count; ++b) run_blocks(b, 1, threads, bytes);
}

// kernel<<<blocks, threads, shared, stream>>>(arguments) is made into this.
template <class Kernel>
auto launch(Kernel kernel, unsigned blocks, unsigned threads, size_t bytes, cudaStream_t) {
  return [=](auto... arguments) {
    // An argument of a launch is limited to 4 KiB in all.
    static_assert((sizeof(arguments) + ... + 0) <= 4096);
    run([&] { kernel(arguments...); }, blocks, threads, bytes, false);
  };
}

template <class... A, size_t... I>
void run_with(void (*kernel)(A...), void** arguments, std::index_sequence<I...>, unsigned blocks,
              unsigned threads, size_t bytes, bool together) {
  static_assert((sizeof(A) + ... + 0) <= 4096);
  if (bytes > size_t(kSharedMemory)) std::abort();
  run([&] { kernel(*static_cast<A*>(arguments[I])...); }, blocks, threads, bytes, together);
}

// A tensor core's addition, by a warp: each lane hands in its elements of both factors. Where which
// element lies is written down here from the description of the instruction, not shared with the
// kernels.
template <int Tall, int Deep, class T, class Add>
void add_product(T* sum, const T* left, const T* right, Add add) {
  const int own = int(self->thread), first = own / int(kWarp) * int(kWarp), lane = own - first;
  double(*const factors)[6] = here().factors + first;
  for (int i = 0; i < Tall * Deep; ++i) factors[lane][i] = double(left[i]);
  for (int i = 0; i < Deep; ++i) factors[lane][4 + i] = double(right[i]);
  wait(warp());
  for (int i = 0; i < 2 * Tall; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    double products[4 * Deep];
    for (int k = 0; k < 4 * Deep; ++k) {
      const double a = factors[row % 8 * 4 + k % 4][row / 8 + Tall * (k / 4)];
      products[k] = a * factors[column * 4 + k % 4][4 + k / 4];
    }
    add(sum[i], products);
  }
  wait(warp());
}

inline void add_tile(double* sum, const double* left, const double* right) {
  add_product<1, 1>(sum, left, right, [](double& to, const double* products) {
    for (int k = 0; k < 4; ++k) to += products[k];
  });
}

// Aborts where bits are set that a tensor core does not read; what it adds is cut off, not rounded.
inline void add_tile(float* sum, const float* left, const float* right) {
  const auto check = [](float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof(bits));
    if (x == x && bits % 8192 != 0) std::abort();
  };
  for (int i = 0; i < 4; ++i) check(left[i]);
  for (int i = 0; i < 2; ++i) check(right[i]);
  add_product<2, 2>(sum, left, right, [](float& to, const double* products) {
    double total = double(to);
    for (int k = 0; k < 8; ++k) total += products[k];
    to = float(total);
    if (std::abs(double(to)) > std::abs(total)) to = std::nextafter(to, 0.0f);
  });
}

inline float tensor_rounded(float x) {
  if (!std::isfinite(x)) return x;
  unsigned bits;
  memcpy(&bits, &x, sizeof(bits));
  bits = (bits + 4096) / 8192 * 8192;
  memcpy(&x, &bits, sizeof(bits));
  return x;
}

}  // namespace emulation

#define threadIdx emulation::thread
#define blockIdx emulation::block
#define gridDim emulation::grid

inline void __syncthreads() { emulation::wait(emulation::here().all); }
inline void __syncwarp() { emulation::wait(emulation::warp()); }

inline int __syncthreads_or(int mine) {
  emulation::Block& block = emulation::here();
  if (mine) block.vote = true;
  __syncthreads();
  const bool any = block.vote;
  __syncthreads();
  block.vote = false;
  __syncthreads();
  return any;
}

inline double __shfl_down_sync(unsigned, double value, int offset, int width) {
  const int self = int(emulation::self->thread);
  double* const exchanged = emulation::here().exchanged;
  exchanged[self] = value;
  __syncwarp();
  const double other = self % width + offset < width ? exchanged[self + offset] : value;
  __syncwarp();
  return other;
}

inline void __threadfence() {}
inline void __nanosleep(unsigned) { emulation::yield(); }
template <class A>
A __ldcg(const A* from) {
  return *from;
}
struct uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
// What was written as numbers of another type.
template <class A>
A __ldg(const A* from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(A) != 0) std::abort();
  A read;
  memcpy(&read, from, sizeof(read));
  return read;
}
template <class A>
A atomicAdd(A* to, A value) {
  return std::exchange(*to, *to + value);
}
inline int atomicOr(int* to, int value) { return std::exchange(*to, *to | value); }

namespace emulation {
// Calls of the runtime that fail, by bits from the first on, and the error that it keeps then.
inline unsigned failing = 0;
inline int last_error = cudaSuccess;

inline bool fails() {
  const bool now = failing % 2 != 0;
  failing /= 2;
  if (now) last_error = cudaErrorNotSupported;
  return now;
}
}  // namespace emulation
inline int cudaGetLastError() { return std::exchange(emulation::last_error, cudaSuccess); }

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrComputeCapabilityMajor
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

inline int cudaGetDevice(int* device) { return *device = 0; }
inline int cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  switch (which) {
    case cudaDevAttrMultiProcessorCount:
      *value = emulation::kProcessors;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = emulation::kSharedMemory;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
  }
  return cudaSuccess;
}
template <class Kernel>
int cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int value) {
  // Other threads launch the same kernel with more: one value for all.
  if (value != emulation::kSharedMemory) std::abort();
  return emulation::fails() ? emulation::last_error : cudaSuccess;
}
template <class Kernel>
int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t) {
  *blocks = 1;
  return cudaSuccess;
}
template <class... A>
int cudaLaunchKernel(void (*kernel)(A...), unsigned blocks, unsigned threads, void** arguments,
                     size_t bytes, cudaStream_t) {
  if (emulation::fails()) return emulation::last_error;
  emulation::run_with(kernel, arguments, std::index_sequence_for<A...>(), blocks, threads, bytes,
                      false);
  return cudaSuccess;
}
template <class... A>
int cudaLaunchCooperativeKernel(void (*kernel)(A...), unsigned blocks, unsigned threads,
                                void** arguments, size_t bytes, cudaStream_t) {
  if (emulation::fails()) return emulation::last_error;
  emulation::run_with(kernel, arguments, std::index_sequence_for<A...>(), blocks, threads, bytes,
                      true);
  return cudaSuccess;
}

template <class A>
A min(A a, A b) {
  return b < a ? b : a;
}
