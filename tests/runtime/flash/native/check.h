// The little that these tests need of a framework: named cases, and checks that stop a case with file and line.
#pragma once

#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "status.h"

namespace check {

struct Case {
  std::string name;
  std::function<void()> body;
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

struct Register {
  Register(const char* name, std::function<void()> body) { cases().push_back({name, std::move(body)}); }
};

inline void that(bool holds, const char* what, const char* file, int line) {
  if (!holds) throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

// The status that a body fails with; HH_FLASH_OK when it does not.
inline hh_flash_status status_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const handheld::flash::Error& error) {
    return error.status();
  }
  return HH_FLASH_OK;
}

}  // namespace check

#define TEST(name)                                        \
  static void name();                                     \
  static const check::Register register_##name(#name, name); \
  static void name()
#define CHECK(condition) check::that((condition), #condition, __FILE__, __LINE__)
