#include "safetensors.h"

#include <algorithm>
#include <array>
#include <utility>

#include "json.h"

namespace handheld::flash {
namespace {

constexpr uint64_t kMaxHeaderBytes = 64u << 20;
constexpr size_t kMaxRank = 8;
constexpr const char* kFile = "resident.safetensors";

[[noreturn]] void bad(const std::string& what) {
  bad_json(kFile, what);
}

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

TensorEntry entry(JsonReader& reader, const std::string& name, uint64_t data_start, uint64_t data_bytes) {
  TensorEntry tensor;
  std::vector<uint64_t> range;
  unsigned seen = 0;
  reader.object([&](const std::string& key) {
    const unsigned bit = key == "dtype" ? 1u : key == "shape" ? 2u : key == "data_offsets" ? 4u : 0u;
    if (bit == 0 || (seen & bit) != 0) bad(name + " has an unknown or repeated key " + key);
    seen |= bit;
    if (bit == 1) tensor.dtype = reader.string();
    if (bit == 2) tensor.shape = reader.integers(kMaxRank);
    if (bit == 4) range = reader.integers(kMaxRank);
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
  JsonReader reader(json, kFile);
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
