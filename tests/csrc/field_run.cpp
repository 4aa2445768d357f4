// Runs generated fields with memory of exactly the sizes that they are to use, for sanitizers. What
// they have not written yet is NaN, so that reading it shows in their results.
//
// Arguments: float or double; the libraries of the value and of the VJP; numbers of a sample; how
// many tensors have gradients; samples; the numbers of each tensor that the field holds.
#include <dlfcn.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "fields/generated.h"

namespace fastnode {
namespace {

constexpr std::align_val_t kLine{64};

template <class T>
struct Memory {
  explicit Memory(int64_t count)
      : numbers(static_cast<T*>(::operator new(size_t(count) * sizeof(T), kLine))), count(count) {
    for (int64_t i = 0; i < count; ++i) numbers[i] = std::numeric_limits<T>::quiet_NaN();
  }
  Memory(const Memory&) = delete;
  ~Memory() { ::operator delete(numbers, kLine); }
  T* const numbers;
  const int64_t count;
};

// In [-0.5, 0.5).
template <class T>
T next() {
  static uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return T(double(state >> 11) * 0x1p-53 - 0.5);
}
template <class T>
void fill(const Memory<T>& memory) {
  for (int64_t i = 0; i < memory.count; ++i) memory.numbers[i] = next<T>();
}
template <class T>
void expect_finite(const char* what, const T* numbers, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (std::isfinite(numbers[i])) continue;
    std::printf("%s: number %lld is %g\n", what, static_cast<long long>(i), double(numbers[i]));
    std::exit(1);
  }
}

template <class T>
const FieldCode<T>* load(const char* library) {
  void* const handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    std::printf("%s\n", dlerror());
    std::exit(1);
  }
  return static_cast<const FieldCode<T>*>(dlsym(handle, "fastnode_field"));
}

template <class T>
struct Held {
  std::vector<std::unique_ptr<Memory<T>>> tensors;
  std::vector<const T*> inputs;
  int64_t dim, samples;
  size_t differentiable;
};

// The code by itself, one tile.
template <class T>
void run_code(const FieldCode<T>& code, const Held<T>& held, bool vjp) {
  const int64_t lanes = code.lanes;
  Memory<T> per_solve(code.per_solve), per_time(code.per_time), scratch(code.scratch);
  Memory<T> y(held.dim * lanes), g(held.dim * lanes), out(held.dim * lanes), times(lanes);
  fill(y);
  fill(g);
  fill(times);
  std::vector<std::unique_ptr<Memory<T>>> sums;
  std::vector<T*> places;
  for (size_t i = 0; vjp && i <= held.differentiable; ++i) {
    sums.push_back(std::make_unique<Memory<T>>(i ? held.tensors[i - 1]->count : 1));
    std::memset(sums.back()->numbers, 0, size_t(sums.back()->count) * sizeof(T));
    places.push_back(sums.back()->numbers);
  }
  code.prepare(held.inputs.data(), per_solve.numbers);
  code.at_time(times.numbers, held.inputs.data(), per_solve.numbers, per_time.numbers);
  code.run(times.numbers, held.inputs.data(), per_solve.numbers, per_time.numbers, y.numbers,
           vjp ? g.numbers : nullptr, out.numbers, places.data(), scratch.numbers);
  expect_finite(vjp ? "gradient of y" : "value", out.numbers, out.count);
  for (const auto& each : sums) expect_finite("sum", each->numbers, each->count);
}

// As the loops of solves do: several tiles and times, memory of which parts are used again.
template <class T>
void run_field(const FieldCode<T>& value, const FieldCode<T>& vjp, const Held<T>& held) {
  MlpKernels<T> kernels{};
  kernels.lanes = 64 / int(sizeof(T));
  std::vector<int64_t> sizes;
  for (size_t i = 0; i < held.differentiable; ++i) sizes.push_back(held.tensors[i]->count);
  const GeneratedField<T> field(value, &vjp, held.inputs, sizes, {}, held.dim, 1, &kernels);
  const int64_t width = field.tile(held.samples);
  const Frame largest = field.frame(std::min(width, held.samples));
  Memory<T> scratch(field.scratch(largest)), more(field.gradient_scratch(largest));
  Memory<T> sums(field.parameter_numbers());
  std::memset(scratch.numbers, 0, size_t(scratch.count) * sizeof(T));
  std::memset(more.numbers, 0, size_t(more.count) * sizeof(T));
  std::memset(sums.numbers, 0, size_t(sums.count) * sizeof(T));
  for (int64_t first = 0; first < held.samples; first += width) {
    const Frame frame = field.frame(std::min(width, held.samples - first));
    Memory<T> x(frame.front() + frame.size(held.dim)), g(frame.front() + frame.size(held.dim));
    Memory<T> out(frame.front() + frame.size(held.dim)), tape(field.tape(frame));
    Memory<T> times(field.tape(frame));
    fill(x);
    fill(g);
    for (int stage = 0; stage < 20; ++stage) {
      for (int64_t i = 0; i < times.count; ++i) times.numbers[i] = T(stage % 18) / 7;
      field.record(frame, times.numbers, x.numbers + frame.front(), tape.numbers, scratch.numbers,
                   out.numbers + frame.front());
      field.gradient(frame, x.numbers + frame.front(), tape.numbers, g.numbers + frame.front(),
                     more.numbers, out.numbers + frame.front(), sums.numbers);
    }
  }
  expect_finite("sums", sums.numbers, sums.count);
}

template <class T>
void run(char** arguments, int count) {
  Held<T> held;
  held.dim = std::atoll(arguments[4]);
  held.differentiable = size_t(std::atoll(arguments[5]));
  held.samples = std::atoll(arguments[6]);
  for (int i = 7; i < count; ++i) {
    held.tensors.push_back(std::make_unique<Memory<T>>(std::atoll(arguments[i])));
    fill(*held.tensors.back());
    held.inputs.push_back(held.tensors.back()->numbers);
  }
  const FieldCode<T>* const value = load<T>(arguments[2]);
  const FieldCode<T>* const vjp = load<T>(arguments[3]);
  run_code(*value, held, false);
  run_code(*vjp, held, true);
  if (!value->per_sample_times) run_field(*value, *vjp, held);
}

}  // namespace
}  // namespace fastnode

int main(int count, char** arguments) {
  if (std::string(arguments[1]) == "float")
    fastnode::run<float>(arguments, count);
  else
    fastnode::run<double>(arguments, count);
}
