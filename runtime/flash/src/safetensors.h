// The header of a safetensors file, read strictly: what is not exactly the published format is refused.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "memory.h"

namespace handheld::flash {

struct TensorEntry {
  std::string dtype;  // "F16", "F32", "I32", "U8", ...
  std::vector<uint64_t> shape;
  uint64_t offset = 0;  // from the start of the file
  uint64_t bytes = 0;
};

using TensorTable = std::map<std::string, TensorEntry>;

// The length that the first 8 bytes of the file announce, checked against the file's size.
uint64_t safetensors_header_bytes(Bytes first8, uint64_t file_bytes);

// `json` is the header without its length. Tensors must fill the rest of the file without holes or overlaps.
// Throws Error(HH_FLASH_BAD_PACK).
TensorTable parse_safetensors(Bytes json, uint64_t file_bytes);

}  // namespace handheld::flash
