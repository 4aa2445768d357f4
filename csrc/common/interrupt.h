// How loops that may take long notice that the user wants them to end (Ctrl-C).
#pragma once

#include <sched.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <limits>

namespace fastnode {

// Whether to end. Set once, when the module is loaded; null where nobody can ask.
using InterruptQuestion = bool (*)();
inline InterruptQuestion& interrupt_question() {
  static InterruptQuestion question = nullptr;
  return question;
}

// Shared by the threads of a loop.
class Interruption {
 public:
  // Before the threads start.
  void begin(int threads) { working_.store(threads, std::memory_order_relaxed); }
  bool requested() const { return requested_.load(std::memory_order_relaxed); }

 private:
  friend class InterruptPoll;
  std::atomic<bool> requested_{false};
  std::atomic<int> working_{1};
};

// A thread's view of it. Only the thread by which the caller entered may ask, as Python handles
// signals in its main thread; it asks some twenty times a second.
class InterruptPoll {
 public:
  InterruptPoll(Interruption& shared, bool asks)
      : shared_(shared),
        question_(asks ? interrupt_question() : nullptr),
        left_(question_ ? kWork : std::numeric_limits<int64_t>::max()) {}

  // After so many multiplications.
  void after(int64_t multiplications) {
    left_ -= multiplications;
    if (left_ <= 0) look();
  }
  bool requested() const { return shared_.requested(); }

  // This thread's part is done: the one that asks goes on asking until all others are done too.
  void finish() {
    if (shared_.working_.fetch_sub(1, std::memory_order_acq_rel) == 1 || !question_) return;
    for (int spins = 0; shared_.working_.load(std::memory_order_acquire) > 0; ++spins) {
      if (spins < 4096) continue;
      sched_yield();
      look();
    }
  }

 private:
  // A millisecond at most; the clock is read no more often.
  static constexpr int64_t kWork = 1'000'000;
  using Clock = std::chrono::steady_clock;

  void look() {
    left_ = kWork;
    if (requested()) return;
    const auto now = Clock::now();
    if (asked_ == Clock::time_point{}) asked_ = now;
    if (now - asked_ < std::chrono::milliseconds(50)) return;
    if (question_()) shared_.requested_.store(true, std::memory_order_relaxed);
    asked_ = Clock::now();
  }

  Interruption& shared_;
  InterruptQuestion question_;
  int64_t left_;
  Clock::time_point asked_{};
};

}  // namespace fastnode
