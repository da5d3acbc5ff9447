// How failures travel inside the engine: as one exception type that the C interface turns into a status.
#pragma once

#include <exception>
#include <string>
#include <utility>

#include "handheld/flash.h"

namespace handheld::flash {

class Error : public std::exception {
 public:
  Error(hh_flash_status status, std::string message) : status_(status), message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }
  hh_flash_status status() const noexcept { return status_; }

 private:
  hh_flash_status status_;
  std::string message_;
};

[[noreturn]] inline void fail(hh_flash_status status, std::string message) {
  throw Error(status, std::move(message));
}

}  // namespace handheld::flash
