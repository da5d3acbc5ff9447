// A file opened for reading by offset, past the page cache where the system can.
#pragma once

#include <cstdint>
#include <string>

#include "memory.h"

namespace handheld::flash {

class File {
 public:
  // `direct` asks for reads that bypass the page cache; `direct()` says whether they do.
  // Throws Error(HH_FLASH_NOT_FOUND), or HH_FLASH_BAD_PACK for what is not a regular file.
  File(std::string path, bool direct);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  uint64_t size() const { return size_; }  // when it was opened
  bool direct() const { return direct_; }
  int descriptor() const { return descriptor_; }
  uint32_t alignment() const { return alignment_; }  // of offset, size and memory of a read

  // Reads exactly `bytes`. Throws Error(HH_FLASH_IO) when the system fails or the file has become shorter. Thread-safe.
  void read(uint64_t offset, uint8_t* to, size_t bytes) const;

 private:
  void find_alignment();

  std::string path_;
  int descriptor_ = -1;
  uint64_t size_ = 0;
  bool direct_ = false;
  uint32_t alignment_ = 1;
};

}  // namespace handheld::flash
