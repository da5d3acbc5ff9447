#include "safetensors.h"

#include <algorithm>
#include <array>
#include <utility>

namespace handheld::flash {
namespace {

constexpr uint64_t kMaxHeaderBytes = 64u << 20;
constexpr size_t kMaxRank = 8;

[[noreturn]] void bad(const std::string& what) {
  fail(HH_FLASH_BAD_PACK, "resident.safetensors: " + what + ". Pack the model again or fetch the pack again.");
}

// Reads the subset of JSON that a safetensors header consists of: objects of strings, lists of integers.
class Reader {
 public:
  explicit Reader(Bytes text) : at_(text.begin()), end_(text.end()) {}

  void expect(char wanted) {
    if (!accept(wanted)) bad(std::string("its header lacks a '") + wanted + "'");
  }

  bool accept(char wanted) {
    skip_space();
    if (at_ == end_ || *at_ != static_cast<uint8_t>(wanted)) return false;
    ++at_;
    return true;
  }

  void expect_end() {
    skip_space();
    if (at_ != end_) bad("its header goes on after its end");
  }

  // Names of tensors are plain text in practice; escapes other than of a quote or a backslash are refused.
  std::string string() {
    expect('"');
    std::string text;
    while (at_ != end_ && *at_ != '"') {
      if (*at_ < 0x20) bad("its header holds a control character");
      if (*at_ == '\\') {
        ++at_;
        if (at_ == end_ || (*at_ != '"' && *at_ != '\\' && *at_ != '/')) bad("its header holds an unknown escape");
      }
      text.push_back(static_cast<char>(*at_++));
    }
    if (at_ == end_) bad("its header ends within a string");
    ++at_;
    return text;
  }

  uint64_t integer() {
    skip_space();
    const uint8_t* first = at_;
    uint64_t value = 0;
    for (; at_ != end_ && *at_ >= '0' && *at_ <= '9'; ++at_) {
      value = checked_add(checked_mul(value, 10), uint64_t{*at_} - '0');
    }
    if (at_ == first || (*first == '0' && at_ - first > 1)) bad("its header lacks an integer");
    return value;
  }

  std::vector<uint64_t> integers() {
    std::vector<uint64_t> values;
    expect('[');
    if (accept(']')) return values;
    do {
      if (values.size() == kMaxRank) bad("a tensor has too many dimensions");
      values.push_back(integer());
    } while (accept(','));
    expect(']');
    return values;
  }

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
  void skip_space() {
    while (at_ != end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\r' || *at_ == '\t')) ++at_;
  }

  const uint8_t* at_;
  const uint8_t* end_;
};

uint64_t element_bytes(const std::string& dtype) {
  constexpr std::array<std::pair<const char*, uint64_t>, 12> kSizes{{{"BOOL", 1},
                                                                     {"U8", 1},
                                                                     {"I8", 1},
                                                                     {"U16", 2},
                                                                     {"I16", 2},
                                                                     {"F16", 2},
                                                                     {"BF16", 2},
                                                                     {"U32", 4},
                                                                     {"I32", 4},
                                                                     {"F32", 4},
                                                                     {"I64", 8},
                                                                     {"F64", 8}}};
  for (const auto& [name, bytes] : kSizes) {
    if (dtype == name) return bytes;
  }
  bad("unknown dtype " + dtype);
}

TensorEntry entry(Reader& reader, const std::string& name, uint64_t data_start, uint64_t data_bytes) {
  TensorEntry tensor;
  std::vector<uint64_t> range;
  unsigned seen = 0;
  reader.object([&](const std::string& key) {
    const unsigned bit = key == "dtype" ? 1u : key == "shape" ? 2u : key == "data_offsets" ? 4u : 0u;
    if (bit == 0 || (seen & bit) != 0) bad(name + " has an unknown or repeated key " + key);
    seen |= bit;
    if (bit == 1) tensor.dtype = reader.string();
    if (bit == 2) tensor.shape = reader.integers();
    if (bit == 4) range = reader.integers();
  });
  if (seen != 7 || range.size() != 2) bad(name + " lacks its dtype, shape or offsets");
  uint64_t bytes = element_bytes(tensor.dtype);
  for (const uint64_t dimension : tensor.shape) bytes = checked_mul(bytes, dimension);
  if (range[0] > range[1] || range[1] > data_bytes || range[1] - range[0] != bytes) {
    bad(name + " lies outside of the file or does not fit its shape");
  }
  tensor.offset = data_start + range[0];
  tensor.bytes = bytes;
  return tensor;
}

void require_no_holes(const TensorTable& tensors, uint64_t data_start, uint64_t file_bytes) {
  std::vector<std::pair<uint64_t, uint64_t>> ranges;
  for (const auto& [name, tensor] : tensors) ranges.emplace_back(tensor.offset, tensor.offset + tensor.bytes);
  std::sort(ranges.begin(), ranges.end());
  uint64_t at = data_start;
  for (const auto& [first, last] : ranges) {
    if (first != at) bad("its tensors overlap or leave holes");
    at = last;
  }
  if (at != file_bytes) bad("its tensors do not end with the file");
}

}  // namespace

uint64_t safetensors_header_bytes(Bytes first8, uint64_t file_bytes) {
  if (first8.size() < 8 || file_bytes < 8) bad("the file is truncated");
  uint64_t bytes = 0;
  for (size_t i = 0; i < 8; ++i) bytes |= uint64_t{first8[i]} << (8 * i);
  if (bytes < 2 || bytes > kMaxHeaderBytes || bytes > file_bytes - 8) bad("its header's size is impossible");
  return bytes;
}

TensorTable parse_safetensors(Bytes json, uint64_t file_bytes) {
  if (file_bytes < 8 || json.size() > file_bytes - 8) bad("the file is truncated");
  const uint64_t data_start = 8 + json.size();
  const uint64_t data_bytes = file_bytes - data_start;
  TensorTable tensors;
  Reader reader(json);
  bool metadata = false;
  reader.object([&](const std::string& name) {
    if (name == "__metadata__") {
      if (std::exchange(metadata, true)) bad("two sets of metadata");
      reader.object([&](const std::string&) { reader.string(); });
      return;
    }
    if (!tensors.emplace(name, entry(reader, name, data_start, data_bytes)).second) bad("two tensors named " + name);
  });
  reader.expect_end();
  require_no_holes(tensors, data_start, file_bytes);
  return tensors;
}

}  // namespace handheld::flash
