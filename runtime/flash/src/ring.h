// Reads through Linux' io_uring, by system calls of our own: many under way for the cost of one call.
#pragma once

#include <cstdint>
#include <memory>

namespace handheld::flash {

// Serves one thread.
class Ring {
 public:
  virtual ~Ring() = default;

  // At most `depth` reads may be under way. Null where the system has no io_uring or does not allow it, as Android does
  // not for apps.
  static std::unique_ptr<Ring> open(uint32_t depth);

  // The read begins with the next call of `submit`; `tag` names it.
  virtual void prepare(int descriptor, uint64_t offset, uint8_t* to, uint32_t bytes, uint64_t tag) = 0;
  // Begins what was prepared, and waits until `wanted` reads are to be popped. Returns how many did not begin, the last
  // ones, because the system failed: 0 but for that.
  virtual uint32_t submit(uint32_t wanted) = 0;
  // A read that has ended. got: bytes, or below 0 where it failed.
  virtual bool pop(uint64_t& tag, int64_t& got) = 0;
};

}  // namespace handheld::flash
