#pragma once

#include <chrono>
#include <cstdint>

namespace handheld::flash {

inline uint64_t now_ns() {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count());
}

// Adds the time it lives to a counter.
class Stopwatch {
 public:
  explicit Stopwatch(uint64_t& total) : total_(total), started_(now_ns()) {}
  ~Stopwatch() { total_ += now_ns() - started_; }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  uint64_t& total_;
  uint64_t started_;
};

}  // namespace handheld::flash
