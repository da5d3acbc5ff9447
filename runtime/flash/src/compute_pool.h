// Threads for arithmetic. A call forks, the calling thread takes part, and all join before it returns.
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

class ComputePool {
 public:
  // `threads` counts the calling one. Throws std::system_error when the system refuses a thread.
  explicit ComputePool(uint32_t threads);
  ~ComputePool();
  ComputePool(const ComputePool&) = delete;
  ComputePool& operator=(const ComputePool&) = delete;

  uint32_t threads() const { return static_cast<uint32_t>(workers_.size()) + 1; }

  // Calls task(thread) once for each thread number. The task must not throw.
  template <typename Task>
  void run(Task&& task) {
    using Decayed = std::remove_reference_t<Task>;
    fork([](void* context, uint32_t thread) { (*static_cast<Decayed*>(context))(thread); },
         const_cast<std::remove_const_t<Decayed>*>(&task));
  }

  // While it lives, workers stay awake from one fork to the next, or, inside of that, may sleep: a token has hundreds of
  // forks, and waking a thread takes as long as the arithmetic of one. For the thread that calls.
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
  using Function = void (*)(void* context, uint32_t thread);
  void fork(Function function, void* context);
  void keep(bool awake);
  bool wake_sleepers();
  void work(uint32_t thread);
  void sleep(uint64_t seen);
  void stop();

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<uint32_t> sleepers_{0};
  std::atomic<uint64_t> generation_{0};  // counts forks
  std::atomic<uint32_t> running_{0};
  std::atomic<bool> awake_{false};
  std::atomic<bool> stopping_{false};
  std::atomic<int> caller_core_{-1};
  Function function_ = nullptr;
  void* context_ = nullptr;
};

}  // namespace handheld::flash
