#include "compute_pool.h"

#if defined(__linux__)
#include <sched.h>
#endif

namespace handheld::flash {
namespace {

// Some tens of microseconds: so long a thread waits at full attention. Then it lets others have the core in between.
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

int current_core() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

// Schedulers like to wake a thread where its waker runs, and there the two would take turns for the whole token. Moves
// the calling thread off `core`, and leaves it free to go anywhere.
void leave_core(int core) {
#if defined(__linux__)
  cpu_set_t allowed;
  if (core < 0 || core >= CPU_SETSIZE || sched_getcpu() != core) return;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0 || CPU_COUNT(&allowed) < 2) return;
  cpu_set_t others = allowed;
  CPU_CLR(static_cast<unsigned>(core), &others);
  if (sched_setaffinity(0, sizeof others, &others) == 0) sched_setaffinity(0, sizeof allowed, &allowed);
#else
  static_cast<void>(core);
#endif
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
  stopping_ = true;
  wake_sleepers();
  for (std::thread& worker : workers_) worker.join();
}

// A worker counts itself as a sleeper before it looks for what wakes it, and that is set before this looks for sleepers:
// one of the two sees the other.
bool ComputePool::wake_sleepers() {
  if (sleepers_ == 0) return false;
  { const std::lock_guard<std::mutex> lock(mutex_); }
  wake_.notify_all();
  return true;
}

void ComputePool::keep(bool awake) {
  if (workers_.empty() || awake_ == awake) return;
  if (awake) caller_core_ = current_core();
  awake_ = awake;
  // A worker that was woken on this core has to run there once to leave it.
  if (awake && wake_sleepers()) std::this_thread::yield();
}

void ComputePool::fork(Function function, void* context) {
  if (workers_.empty()) return function(context, 0);
  function_ = function;
  context_ = context;
  caller_core_ = current_core();
  running_ = static_cast<uint32_t>(workers_.size());
  ++generation_;
  wake_sleepers();
  function(context, 0);
  while (!spin_until([&] { return running_.load(std::memory_order_acquire) == 0; })) std::this_thread::yield();
}

void ComputePool::sleep(uint64_t seen) {
  {
    std::unique_lock<std::mutex> lock(mutex_);
    ++sleepers_;
    wake_.wait(lock, [&] { return stopping_ || awake_ || generation_ != seen; });
    --sleepers_;
  }
  leave_core(caller_core_);
}

void ComputePool::work(uint32_t thread) {
  uint64_t seen = 0;
  while (true) {
    while (!spin_until([&] { return stopping_ || generation_ != seen; })) {
      if (awake_) {
        std::this_thread::yield();
      } else {
        sleep(seen);
      }
    }
    if (stopping_) return;
    ++seen;
    leave_core(caller_core_);
    function_(context_, thread);
    running_.fetch_sub(1, std::memory_order_acq_rel);
  }
}

}  // namespace handheld::flash
