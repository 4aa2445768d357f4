#include "fields/loss.h"

#include <algorithm>
#include <atomic>
#include <memory>

namespace fastnode {
namespace {

template <class T>
constexpr int64_t kLine = 64 / int64_t(sizeof(T));

// The first line of 64 bytes in a vector that has one more.
template <class T>
T* aligned(std::vector<T>& memory) {
  void* at = memory.data();
  size_t room = memory.size() * sizeof(T);
  return static_cast<T*>(std::align(64, 1, at, room));
}

template <class T, class From>
void copy_numbers(const SampleRows& rows, int64_t first, int64_t count, int64_t lanes, T* to) {
  const From* const from = static_cast<const From*>(rows.from);
  for (int64_t s = 0; s < count; ++s) {
    const int64_t row = rows.picked ? rows.picked[first + s] : first + s;
    const From* const at = from + row * rows.stride;
    for (int64_t i = 0; i < rows.size; ++i) to[i * lanes + s] = T(at[i * rows.step]);
  }
}

}  // namespace

// What one thread works with.
template <class T>
struct GeneratedLoss<T>::Work {
  T *tile, *weights, *out, *scratch, *gradients;
  std::vector<T*> sums;
  std::vector<double> parts;
};

template <class T>
GeneratedLoss<T>::GeneratedLoss(const FieldCode<T>& code, int64_t numbers, int64_t parts,
                                int64_t of_rows, std::vector<int64_t> sizes)
    : code_(code),
      numbers_(numbers),
      parts_(parts),
      of_rows_(of_rows),
      sizes_(std::move(sizes)),
      per_solve_(size_t(code.per_solve + kLine<T>)),
      per_time_(size_t(code.per_time + kLine<T>)) {
  for (int64_t size : sizes_) gradient_numbers_ += size;
}

// The samples from `first` on, a tile of them; the last one stands in for those that are missing.
template <class T>
LossEnding GeneratedLoss<T>::load(std::span<const SampleRows> rows, int64_t first, int64_t count,
                                  T* tile) const {
  const int64_t lanes = code_.lanes;
  T* to = tile;
  for (const SampleRows& each : rows) {
    if (each.whole) {
      const int64_t* const from = static_cast<const int64_t*>(each.from);
      for (int64_t s = 0; s < count; ++s) {
        const int64_t row = each.picked ? each.picked[first + s] : first + s;
        for (int64_t i = 0; i < each.size; ++i) {
          const int64_t value = from[row * each.stride + i * each.step];
          if (value < each.least || value > each.most) return LossEnding::kOutOfRange;
        }
      }
      copy_numbers<T, int64_t>(each, first, count, lanes, to);
    } else {
      copy_numbers<T, T>(each, first, count, lanes, to);
    }
    to += each.size * lanes;
  }
  if (count < lanes) {
    for (int64_t i = 0; i < numbers_; ++i) {
      std::fill(tile + i * lanes + count, tile + (i + 1) * lanes, tile[i * lanes + count - 1]);
    }
  }
  return LossEnding::kDone;
}

template <class T>
LossEnding GeneratedLoss<T>::run(const T* const* inputs, std::span<const SampleRows> rows,
                                 int64_t batch, T weight, int threads, RunParallel parallel,
                                 double* parts, T* gradients, T* row_gradients) {
  const int64_t lanes = code_.lanes, tiles = (batch + lanes - 1) / lanes;
  const int64_t outputs = parts_ + of_rows_;
  T* const per_solve = aligned(per_solve_);
  T* const per_time = aligned(per_time_);
  const T no_time = 0;
  code_.prepare(inputs, per_solve);
  code_.at_time(&no_time, inputs, per_solve, per_time);

  threads = int(std::clamp<int64_t>(tiles, 1, threads));
  std::vector<Work> work;
  Interruption interruption;
  std::atomic<LossEnding> ending{LossEnding::kDone};
  const auto prepare = [&](int count) {
    interruption.begin(count);
    work.resize(size_t(count));
    if (memory_.size() < size_t(count)) memory_.resize(size_t(count));
    for (int i = 0; i < count; ++i) {
      const auto line = [](int64_t n) { return round_up(n, kLine<T>); };
      const int64_t own = i == 0 ? 0 : line(gradient_numbers_);
      const int64_t needed = line(numbers_ * lanes) + line(lanes) + line(outputs * lanes) +
                             line(code_.scratch) + own + kLine<T>;
      std::vector<T>& memory = memory_[size_t(i)];
      if (int64_t(memory.size()) < needed) memory.resize(size_t(needed));
      T* at = aligned(memory);
      const auto take = [&](int64_t n) {
        T* const found = at;
        at += line(n);
        return found;
      };
      Work& one = work[size_t(i)];
      one.tile = take(numbers_ * lanes);
      one.weights = take(lanes);
      one.out = take(outputs * lanes);
      one.scratch = take(code_.scratch);
      one.gradients = i == 0 ? gradients : take(gradient_numbers_);
      one.parts.assign(size_t(parts_), 0.0);
      T* to = one.gradients;
      // Inputs are numbered from one on (fields/code.h).
      one.sums.assign(1, nullptr);
      for (int64_t size : sizes_) {
        one.sums.push_back(to);
        to += size;
      }
    }
  };
  const auto body = [&](int thread, int count) {
    Work& mine = work[size_t(thread)];
    InterruptPoll poll(interruption, thread == 0);
    std::fill_n(mine.gradients, gradient_numbers_, T(0));
    const int64_t begin = tiles * thread / count, end = tiles * (thread + 1) / count;
    for (int64_t tile = begin; tile < end && !poll.requested(); ++tile) {
      const int64_t first = tile * lanes, there = std::min(lanes, batch - first);
      if (load(rows, first, there, mine.tile) != LossEnding::kDone) {
        ending.store(LossEnding::kOutOfRange, std::memory_order_relaxed);
        break;
      }
      for (int64_t s = 0; s < lanes; ++s) mine.weights[s] = s < there ? weight : T(0);
      code_.run(&no_time, inputs, per_solve, per_time, mine.tile, mine.weights, mine.out,
                mine.sums.data(), mine.scratch);
      for (int64_t p = 0; p < parts_; ++p) {
        for (int64_t s = 0; s < there; ++s)
          mine.parts[size_t(p)] += double(mine.out[p * lanes + s]);
      }
      if (row_gradients) {
        for (int64_t s = 0; s < there; ++s) {
          T* const to = row_gradients + (first + s) * of_rows_;
          const T* const from = mine.out + parts_ * lanes + s;
          for (int64_t i = 0; i < of_rows_; ++i) to[i] = from[i * lanes];
        }
      }
      poll.after(gradient_numbers_ * lanes);
    }
    poll.finish();
  };
  if (threads == 1) {
    prepare(1);
    body(0, 1);
  } else {
    parallel(threads, prepare, body);
  }
  if (interruption.requested()) return LossEnding::kInterrupted;
  if (ending.load() != LossEnding::kDone) return ending.load();
  for (int64_t p = 0; p < parts_; ++p) {
    double total = 0;
    for (const Work& each : work) total += each.parts[size_t(p)];
    parts[p] = total * double(weight);
  }
  for (size_t i = 1; i < work.size(); ++i) {
    for (int64_t j = 0; j < gradient_numbers_; ++j) gradients[j] += work[i].gradients[j];
  }
  return LossEnding::kDone;
}

template class GeneratedLoss<float>;
template class GeneratedLoss<double>;

}  // namespace fastnode
