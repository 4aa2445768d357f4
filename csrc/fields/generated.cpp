#include "fields/generated.h"

#include <algorithm>
#include <cstring>

namespace fastnode {
namespace {

constexpr int kSlots = 16;

template <class T>
int64_t lines(int64_t numbers) {
  return round_up(numbers, 64 / int64_t(sizeof(T)));
}

// No two solves share one, so that memory which an earlier one left is never taken for this one's.
uint64_t next_stamp() {
  static std::atomic<uint64_t> last{0x9E3779B97F4A7C15};
  return ++last;
}

}  // namespace

// At the beginning of a thread's memory.
template <class T>
struct GeneratedField<T>::Ready::Slots {
  uint64_t stamps[kSlots];
  T times[kSlots];
  int32_t last;
};

template <class T>
GeneratedField<T>::Ready::Ready(const FieldCode<T>* code, const T* const* inputs)
    : code_(code), per_solve_(size_t(code->per_solve)), stamp_(next_stamp()) {
  code->prepare(inputs, per_solve_.data());
}

template <class T>
int64_t GeneratedField<T>::Ready::slot_numbers() const {
  if (code_->per_time == 0) return 0;
  const int64_t header = (int64_t(sizeof(Slots)) + int64_t(sizeof(T)) - 1) / int64_t(sizeof(T));
  return lines<T>(header + kSlots * code_->per_time);
}

template <class T>
int64_t GeneratedField<T>::Ready::numbers() const {
  return code_ ? slot_numbers() + lines<T>(code_->scratch) : 0;
}

template <class T>
const T* GeneratedField<T>::Ready::at(const T* time, const T* const* inputs, T* memory) const {
  if (code_->per_time == 0) return nullptr;
  auto* const slots = reinterpret_cast<Slots*>(memory);
  const int64_t header = (int64_t(sizeof(Slots)) + int64_t(sizeof(T)) - 1) / int64_t(sizeof(T));
  const auto values = [&](int slot) { return memory + header + slot * code_->per_time; };
  // Stages come in the same order in each tile.
  const int last = slots->last & (kSlots - 1);
  for (int i = 1; i <= kSlots; ++i) {
    const int slot = (last + i) & (kSlots - 1);
    if (slots->stamps[slot] != stamp_ || slots->times[slot] != *time) continue;
    slots->last = slot;
    return values(slot);
  }
  int slot = (last + 1) & (kSlots - 1);
  slots->stamps[slot] = stamp_;
  slots->times[slot] = *time;
  slots->last = slot;
  code_->at_time(time, inputs, per_solve_.data(), values(slot));
  return values(slot);
}

template <class T>
void GeneratedField<T>::Ready::run(const Frame& frame, const T* const* inputs, const T* times,
                                   const T* y, const T* g, int64_t dim, T* memory, T* out,
                                   T* const* sums) const {
  const T* const per_time = code_->per_sample_times ? nullptr : at(times, inputs, memory);
  T* const scratch = memory + slot_numbers();
  if (!frame.sample_major) {
    code_->run(times, inputs, per_solve_.data(), per_time, y, g, out, sums, scratch);
    return;
  }
  const int64_t stride = frame.stride(dim);
  for (int64_t s = 0; s < frame.samples; ++s) {
    code_->run(times + s, inputs, per_solve_.data(), per_time, y + s * stride,
               g ? g + s * stride : nullptr, out + s * stride, sums, scratch);
  }
}

template <class T>
GeneratedField<T>::GeneratedField(const FieldCode<T>& value, const FieldCode<T>* vjp,
                                  std::vector<const T*> inputs, std::vector<int64_t> sizes,
                                  std::span<const int64_t> ends, int64_t dim,
                                  int64_t multiplications, const MlpKernels<T>* kernels)
    : Field<T>(kernels, value.lanes == 1, value.lanes == 1 ? kernels->lanes : value.lanes,
               value.lanes),
      inputs_(std::move(inputs)),
      sizes_(std::move(sizes)),
      dim_(dim),
      multiplications_(multiplications),
      value_(&value, inputs_.data()) {
  this->ends = ends;
  for (int64_t size : sizes_) numbers_ += size;
  if (vjp) vjp_ = Ready(vjp, inputs_.data());
}

template <class T>
void GeneratedField<T>::value(const Frame& frame, const T* times, T* x, T* scratch, T* out) const {
  value_.run(frame, inputs_.data(), times, x, nullptr, dim_, scratch, out, nullptr);
}

template <class T>
void GeneratedField<T>::record(const Frame& frame, const T* times, T* x, T* tape, T* scratch,
                               T* out) const {
  std::copy_n(times, this->tape(frame), tape);
  value(frame, times, x, scratch, out);
}

// Memory for the value, for the VJP, the places of sums, and sums that nobody asked for.
template <class T>
int64_t GeneratedField<T>::gradient_scratch(const Frame&) const {
  const int64_t places = int64_t((sizes_.size() + 1) * sizeof(T*) / sizeof(T));
  return value_.numbers() + vjp_.numbers() + lines<T>(places) + numbers_;
}

template <class T>
void GeneratedField<T>::gradient(const Frame& frame, const T* x, const T* tape, T* g, T* scratch,
                                 T* gx, T* gradients) const {
  T* const memory = scratch + value_.numbers();
  T* const after = memory + vjp_.numbers();
  const int64_t places = int64_t((sizes_.size() + 1) * sizeof(T*) / sizeof(T));
  T** const sums = reinterpret_cast<T**>(after);
  T* to = gradients ? gradients : after + lines<T>(places);
  sums[0] = to++;
  for (size_t i = 0; i < sizes_.size(); ++i) {
    sums[i + 1] = to;
    to += sizes_[i];
  }
  vjp_.run(frame, inputs_.data(), tape, x, g, dim_, memory, gx, sums);
}

template class GeneratedField<float>;
template class GeneratedField<double>;

}  // namespace fastnode
