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

void ComputePool::fork(Function function, void* context, uint32_t parts) {
  function_ = function;
  context_ = context;
  caller_core_ = current_core();
  done_ = 0;
  parts_ = ((parts_ >> 32) + 1) << 32 | parts;
  if (parts > 1) wake_sleepers();
  join(0);
  while (!spin_until([&] { return done_.load(std::memory_order_acquire) == parts; })) std::this_thread::yield();
}

bool ComputePool::has_parts() const {
  const uint64_t parts = parts_;
  return (parts >> 16 & kMaxParts) < (parts & kMaxParts);
}

uint32_t ComputePool::take_part() {
  uint64_t parts = parts_;
  uint32_t part;
  do {
    part = parts >> 16 & kMaxParts;
    if (part >= (parts & kMaxParts)) return kNoPart;
  } while (!parts_.compare_exchange_weak(parts, parts + (1 << 16)));
  return part;
}

// A part is taken before its fork's function is looked at: until that part is done, there is no other fork.
void ComputePool::join(uint32_t thread) {
  Parts mine(*this);
  if (mine.first_ == kNoPart) return;
  function_(context_, mine, thread);
  done_.fetch_add(mine.taken_, std::memory_order_acq_rel);
}

void ComputePool::sleep() {
  {
    std::unique_lock<std::mutex> lock(mutex_);
    ++sleepers_;
    wake_.wait(lock, [&] { return stopping_ || awake_ || has_parts(); });
    --sleepers_;
  }
  leave_core(caller_core_);
}

void ComputePool::work(uint32_t thread) {
  while (true) {
    while (!spin_until([&] { return stopping_ || has_parts(); })) {
      if (awake_) {
        std::this_thread::yield();
      } else {
        sleep();
      }
    }
    if (stopping_) return;
    leave_core(caller_core_);
    join(thread);
  }
}

}  // namespace handheld::flash
