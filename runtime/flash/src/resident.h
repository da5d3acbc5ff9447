// resident.safetensors of a pack: its tensors found by name, checked, and read.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "file.h"
#include "format.h"
#include "safetensors.h"

namespace handheld::flash {

class ResidentFile {
 public:
  // Throws Error for a file that is not the one that the header of neurons.bin describes, by its size.
  ResidentFile(const std::string& folder, const Layout& layout);

  const TensorTable& tensors() const { return tensors_; }
  // Null when there is none and none is required. Throws Error(HH_FLASH_BAD_PACK) for another dtype or shape.
  const TensorEntry* find(const std::string& name, const char* dtype, const std::vector<uint64_t>& shape,
                          bool required) const;
  void read(const TensorEntry& tensor, uint8_t* to) const;
  [[noreturn]] void bad(const std::string& what) const;

 private:
  void read_table();

  std::string path_;
  File file_;
  TensorTable tensors_;
};

}  // namespace handheld::flash
