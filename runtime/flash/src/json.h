// The little of JSON that packs are described in: objects, strings, numbers and lists of integers, read strictly.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "memory.h"

namespace handheld::flash {

// Throws Error(HH_FLASH_BAD_PACK) that starts with `where`.
[[noreturn]] void bad_json(const char* where, const std::string& what);

class JsonReader {
 public:
  // `where` names the text in errors, and is static.
  JsonReader(Bytes text, const char* where) : at_(text.begin()), end_(text.end()), where_(where) {}

  void expect(char wanted);
  bool accept(char wanted);
  void expect_end();
  // Escapes other than of a quote, a backslash or a slash are refused.
  std::string string();
  uint64_t integer();
  double number();
  std::vector<uint64_t> integers(size_t most);

  // Calls `member(key)` with the reader standing on each value.
  template <typename Member>
  void object(Member member) {
    expect('{');
    if (accept('}')) return;
    do {
      std::string key = string();
      expect(':');
      member(std::move(key));
    } while (accept(','));
    expect('}');
  }

 private:
  [[noreturn]] void bad(const std::string& what) const { bad_json(where_, what); }
  void skip_space();
  int digits(uint64_t& value);  // appends those that are next to `value`; returns how many

  const uint8_t* at_;
  const uint8_t* end_;
  const char* where_;
};

}  // namespace handheld::flash
