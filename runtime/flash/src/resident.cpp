#include "resident.h"

namespace handheld::flash {
namespace {

constexpr const char* kName = "/resident.safetensors";

}  // namespace

ResidentFile::ResidentFile(const std::string& folder, const Layout& layout)
    : path_(folder + kName), file_(path_, false) {
  if (file_.size() != layout.resident_bytes) {
    fail(HH_FLASH_BAD_PACK, path_ + " has " + std::to_string(file_.size()) + " bytes and must have " +
                                std::to_string(layout.resident_bytes) + ". Fetch the pack again.");
  }
  read_table();
}

void ResidentFile::read_table() {
  std::vector<uint8_t> first(8);
  if (file_.size() < first.size()) fail(HH_FLASH_BAD_PACK, path_ + " is truncated.");
  file_.read(0, first.data(), first.size());
  std::vector<uint8_t> json(static_cast<size_t>(safetensors_header_bytes(first, file_.size())));
  file_.read(8, json.data(), json.size());
  tensors_ = parse_safetensors(json, file_.size());
}

const TensorEntry* ResidentFile::find(const std::string& name, const char* dtype, const std::vector<uint64_t>& shape,
                                      bool required) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    if (required) bad("lacks " + name);
    return nullptr;
  }
  const TensorEntry& tensor = found->second;
  if (tensor.dtype == dtype && tensor.shape == shape) return &tensor;
  std::string wanted = dtype;
  for (const uint64_t size : shape) wanted += " " + std::to_string(size);
  std::string given = tensor.dtype;
  for (const uint64_t size : tensor.shape) given += " " + std::to_string(size);
  bad(name + " is " + given + " and must be " + wanted);
}

void ResidentFile::read(const TensorEntry& tensor, uint8_t* to) const {
  file_.read(tensor.offset, to, static_cast<size_t>(tensor.bytes));
}

void ResidentFile::bad(const std::string& what) const {
  fail(HH_FLASH_BAD_PACK, path_ + ": " + what + ". Pack the model again or fetch the pack again.");
}

}  // namespace handheld::flash
