#include "json.h"

#include <cmath>
#include <cstdlib>

namespace handheld::flash {

void bad_json(const char* where, const std::string& what) {
  fail(HH_FLASH_BAD_PACK, std::string(where) + ": " + what + ". Pack the model again or fetch the pack again.");
}

void JsonReader::skip_space() {
  while (at_ != end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\r' || *at_ == '\t')) ++at_;
}

void JsonReader::expect(char wanted) {
  if (!accept(wanted)) bad(std::string("its JSON lacks a '") + wanted + "'");
}

bool JsonReader::accept(char wanted) {
  skip_space();
  if (at_ == end_ || *at_ != static_cast<uint8_t>(wanted)) return false;
  ++at_;
  return true;
}

void JsonReader::expect_end() {
  skip_space();
  if (at_ != end_) bad("its JSON goes on after its end");
}

std::string JsonReader::string() {
  expect('"');
  std::string text;
  while (at_ != end_ && *at_ != '"') {
    if (*at_ < 0x20) bad("its JSON holds a control character");
    if (*at_ == '\\') {
      ++at_;
      if (at_ == end_ || (*at_ != '"' && *at_ != '\\' && *at_ != '/')) bad("its JSON holds an unknown escape");
    }
    text.push_back(static_cast<char>(*at_++));
  }
  if (at_ == end_) bad("its JSON ends within a string");
  ++at_;
  return text;
}

int JsonReader::digits(uint64_t& value) {
  const uint8_t* first = at_;
  for (; at_ != end_ && *at_ >= '0' && *at_ <= '9'; ++at_) {
    value = checked_add(checked_mul(value, 10), uint64_t{*at_} - '0');
  }
  if (at_ == first) bad("its JSON lacks a number");
  return static_cast<int>(at_ - first);
}

uint64_t JsonReader::integer() {
  skip_space();
  const bool zero = at_ != end_ && *at_ == '0';
  uint64_t value = 0;
  if (digits(value) > 1 && zero) bad("its JSON holds a number that starts with 0");
  return value;
}

double JsonReader::number() {
  constexpr uint64_t kMostExponent = 400;
  const bool negative = accept('-');
  uint64_t value = integer();
  int exponent = 0;
  if (at_ != end_ && *at_ == '.') {
    ++at_;
    exponent = -digits(value);
  }
  if (at_ != end_ && (*at_ == 'e' || *at_ == 'E')) {
    ++at_;
    const bool down = at_ != end_ && *at_ == '-';
    if (at_ != end_ && (*at_ == '-' || *at_ == '+')) ++at_;
    uint64_t given = 0;
    digits(given);
    if (given > kMostExponent) bad("its JSON holds an impossible exponent");
    exponent += down ? -static_cast<int>(given) : static_cast<int>(given);
  }
  // Powers of ten up to 22 are exact, so that usual fractions are rounded once.
  const double power = std::pow(10.0, std::abs(exponent));
  const double magnitude = exponent < 0 ? static_cast<double>(value) / power : static_cast<double>(value) * power;
  return negative ? -magnitude : magnitude;
}

std::vector<uint64_t> JsonReader::integers(size_t most) {
  std::vector<uint64_t> values;
  expect('[');
  if (accept(']')) return values;
  do {
    if (values.size() == most) bad("a list is longer than " + std::to_string(most));
    values.push_back(integer());
  } while (accept(','));
  expect(']');
  return values;
}

}  // namespace handheld::flash
