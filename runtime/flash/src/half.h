// IEEE half precision to float without help from the processor.
#pragma once

#include <cstdint>
#include <cstring>

namespace handheld::flash {

inline float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t magnitude = half & 0x7fffu;
  float value;
  if (magnitude >= 0x7c00u) {  // infinity and NaN
    const uint32_t bits = sign | 0x7f800000u | (magnitude & 0x3ffu) << 13;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  // Shifted into a float's fields, a half is 2^112 times too small, subnormals included.
  const uint32_t bits = magnitude << 13;
  std::memcpy(&value, &bits, sizeof value);
  value *= 0x1p112f;
  return sign != 0 ? -value : value;
}

// At an address that need not be aligned, little-endian.
inline float load_half(const uint8_t* from) {
  return half_to_float(static_cast<uint16_t>(from[0] | from[1] << 8));
}

}  // namespace handheld::flash
