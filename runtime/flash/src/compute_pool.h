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

  // Calls task(part, thread) once for each part, in no order. The task must not throw. At most kMaxParts.
  template <typename Task>
  void run(size_t parts, Task&& task) {
    using Decayed = std::remove_reference_t<Task>;
    fork([](void* context, uint32_t part, uint32_t thread) { (*static_cast<Decayed*>(context))(part, thread); },
         const_cast<std::remove_const_t<Decayed>*>(&task), static_cast<uint32_t>(parts));
  }

  static constexpr size_t kMaxParts = 0xffff;

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
  using Function = void (*)(void* context, uint32_t part, uint32_t thread);
  void fork(Function function, void* context, uint32_t parts);
  bool take_part(uint32_t thread);
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
