#include "file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

namespace handheld::flash {
namespace {

std::string reason(int code) { return std::generic_category().message(code); }

int open_retrying(const char* path, int flags) {
  int descriptor;
  do {
    // Without O_NONBLOCK, opening a pipe would wait for its writer.
    descriptor = ::open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | flags);
  } while (descriptor < 0 && errno == EINTR);
  return descriptor;
}

}  // namespace

File::File(std::string path, bool direct) : path_(std::move(path)) {
#ifdef O_DIRECT
  if (direct) descriptor_ = open_retrying(path_.c_str(), O_DIRECT);
  direct_ = descriptor_ >= 0;
#endif
  // Some file systems (tmpfs, network ones) refuse O_DIRECT; the engine works there all the same.
  if (descriptor_ < 0) descriptor_ = open_retrying(path_.c_str(), 0);
  if (descriptor_ < 0) fail(HH_FLASH_NOT_FOUND, path_ + " cannot be opened: " + reason(errno) + ".");
#ifdef F_NOCACHE
  if (direct) direct_ = ::fcntl(descriptor_, F_NOCACHE, 1) == 0;
#endif
  struct stat status;
  const bool known = ::fstat(descriptor_, &status) == 0;
  if (!known || !S_ISREG(status.st_mode)) {
    ::close(descriptor_);
    fail(HH_FLASH_BAD_PACK, path_ + " is not a regular file.");
  }
  size_ = static_cast<uint64_t>(status.st_size);
  if (direct_) find_alignment();
}

File::~File() { ::close(descriptor_); }

// Devices with 512-byte sectors let small bundles be read with less around them than 4 KiB.
void File::find_alignment() {
  alignment_ = kMemoryAlignment;
#ifdef O_DIRECT
  constexpr uint32_t kSector = 512;
  const auto buffer = allocate_aligned<uint8_t>(kMemoryAlignment);
  ssize_t got;
  do {
    got = ::pread(descriptor_, buffer.get() + kSector, kSector, kSector);
  } while (got < 0 && errno == EINTR);
  if (got == kSector) alignment_ = kSector;
#endif
}

void File::read(uint64_t offset, uint8_t* to, size_t bytes) const {
  size_t done = 0;
  while (done < bytes) {
    const ssize_t got = ::pread(descriptor_, to + done, bytes - done, static_cast<off_t>(offset + done));
    if (got < 0) {
      if (errno == EINTR) continue;
      fail(HH_FLASH_IO, path_ + " cannot be read at " + std::to_string(offset + done) + ": " + reason(errno) + ".");
    }
    // A direct read that stops off the alignment has met the end of the file, and could not be continued.
    if (got == 0 || (direct_ && static_cast<size_t>(got) % alignment_ != 0 && static_cast<size_t>(got) != bytes - done)) {
      fail(HH_FLASH_IO, path_ + " has become shorter than the " + std::to_string(size_) +
                            " bytes it had when it was opened. Do not replace or truncate a pack in use.");
    }
    done += static_cast<size_t>(got);
  }
}

}  // namespace handheld::flash
