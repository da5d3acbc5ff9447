// SHA-256 (FIPS 180-4).
#pragma once

#include <array>
#include <cstdint>

#include "memory.h"

namespace handheld::flash {

using Digest = std::array<uint8_t, 32>;

class Sha256 {
 public:
  void update(Bytes bytes);
  // Call once, last.
  Digest finish();

 private:
  void compress(const uint8_t* block);

  std::array<uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> tail_{};
  size_t tail_bytes_ = 0;
  uint64_t total_bytes_ = 0;
};

Digest sha256(Bytes bytes);

}  // namespace handheld::flash
