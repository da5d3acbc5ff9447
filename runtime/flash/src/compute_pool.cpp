#include "compute_pool.h"

namespace handheld::flash {
namespace {

// Layers follow each other within microseconds: a short spin saves the wake-up, and an idle pool soon sleeps.
constexpr int kSpins = 1000;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <typename Condition>
bool spin_until(Condition condition) {
  for (int i = 0; i < kSpins; ++i) {
    if (condition()) return true;
    relax();
  }
  return condition();
}

}  // namespace

ComputePool::ComputePool(uint32_t threads) {
  workers_.reserve(threads - 1);
  try {
    for (uint32_t thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { work(thread); });
  } catch (...) {
    stop();
    throw;
  }
}

ComputePool::~ComputePool() { stop(); }

void ComputePool::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ComputePool::fork(Function function, void* context) {
  if (!workers_.empty()) {
    const std::lock_guard<std::mutex> lock(mutex_);
    function_ = function;
    context_ = context;
    running_ = static_cast<uint32_t>(workers_.size());
    ++generation_;
  }
  wake_.notify_all();
  function(context, 0);
  const auto joined = [this] { return running_.load(std::memory_order_acquire) == 0; };
  if (spin_until(joined)) return;
  std::unique_lock<std::mutex> lock(mutex_);
  joined_.wait(lock, joined);
}

void ComputePool::work(uint32_t thread) {
  uint64_t seen = 0;
  const auto called = [&] { return stopping_ || generation_ != seen; };
  while (true) {
    if (!spin_until(called)) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, called);
    }
    if (stopping_) return;
    ++seen;
    function_(context_, thread);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
      // Taking the mutex orders this with a caller that is about to sleep.
      { const std::lock_guard<std::mutex> lock(mutex_); }
      joined_.notify_one();
    }
  }
}

}  // namespace handheld::flash
