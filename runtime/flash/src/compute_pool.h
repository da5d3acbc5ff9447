// Threads for arithmetic. A call forks into parts, which whoever has time takes: the calling thread never waits for one
// that is late, but for parts that were begun.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace handheld::flash {

// Weights of fewer bytes than this are multiplied sooner than a fork takes.
constexpr size_t kForkBytes = 16 * 1024;

// So many that a thread whose core is taken from it holds up little.
constexpr size_t kPartsPerThread = 4;

class ComputePool {
 public:
  // `threads` counts the calling one. Throws std::system_error when the system refuses a thread.
  explicit ComputePool(uint32_t threads);
  ~ComputePool();
  ComputePool(const ComputePool&) = delete;
  ComputePool& operator=(const ComputePool&) = delete;

  uint32_t threads() const { return static_cast<uint32_t>(workers_.size()) + 1; }

  // What one thread takes of a fork.
  class Parts {
   public:
    explicit Parts(ComputePool& pool) : pool_(pool), first_(pool.take_part()) {}

    // kNoPart when all are taken. Who takes a part does it before its task returns.
    uint32_t take() {
      const uint32_t part = first_ == kNoPart ? pool_.take_part() : std::exchange(first_, kNoPart);
      if (part != kNoPart) ++taken_;
      return part;
    }

   private:
    friend ComputePool;
    ComputePool& pool_;
    uint32_t first_;
    uint32_t taken_ = 0;
  };

  // Calls task(parts, thread) on each thread that has time while there are parts, of which there are kMaxParts at most.
  // The task takes them, one at least, until there are none. It must not throw.
  template <typename Task>
  void run_each(size_t parts, Task&& task) {
    using Decayed = std::remove_reference_t<Task>;
    fork([](void* context, Parts& mine, uint32_t thread) { (*static_cast<Decayed*>(context))(mine, thread); },
         const_cast<std::remove_const_t<Decayed>*>(&task), static_cast<uint32_t>(parts));
  }

  // Calls task(part, thread) once for each part, in no order.
  template <typename Task>
  void run(size_t parts, Task&& task) {
    run_each(parts, [&](Parts& mine, uint32_t thread) {
      for (uint32_t part = mine.take(); part != kNoPart; part = mine.take()) task(part, thread);
    });
  }

  static constexpr size_t kMaxParts = 0xffff;
  static constexpr uint32_t kNoPart = ~0u;

  // While it lives, workers stay awake from one fork to the next, or, inside of that, may sleep: a token has hundreds
  // of forks, and waking a thread takes as long as the arithmetic of one. For the thread that calls.
  class Awake {
   public:
    explicit Awake(ComputePool& pool, bool awake = true) : pool_(pool), before_(pool.awake_) { pool.keep(awake); }
    ~Awake() { pool_.keep(before_); }
    Awake(const Awake&) = delete;
    Awake& operator=(const Awake&) = delete;

   private:
    ComputePool& pool_;
    const bool before_;
  };

 private:
  using Function = void (*)(void* context, Parts& mine, uint32_t thread);
  void fork(Function function, void* context, uint32_t parts);
  void join(uint32_t thread);
  uint32_t take_part();
  bool has_parts() const;
  void keep(bool awake);
  bool wake_sleepers();
  void work(uint32_t thread);
  void sleep();
  void stop();

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint32_t> sleepers_{0};
  // From the top: 32 bits that count forks, the next part, the number of parts. In one word, so that a part is taken of
  // the fork that was looked at or not at all.
  std::atomic<uint64_t> parts_{0};
  std::atomic<uint32_t> done_{0};  // parts
  std::atomic<bool> awake_{false};
  std::atomic<bool> stopping_{false};
  std::atomic<int> caller_core_{-1};
  Function function_ = nullptr;
  void* context_ = nullptr;
};

}  // namespace handheld::flash
