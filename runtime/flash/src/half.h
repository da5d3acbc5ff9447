// IEEE half precision from and to float without help from the processor.
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

// Rounds to nearest, ties to even; what is too large becomes infinity.
inline uint16_t float_to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {
    // Subnormal: the last bit of 0.5 is worth a half's smallest step, so the sum counts steps, rounded.
    float shifted;
    std::memcpy(&shifted, &magnitude, sizeof shifted);
    shifted += 0.5f;
    std::memcpy(&bits, &shifted, sizeof bits);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  }
  const uint32_t odd = magnitude >> 13 & 1u;
  return static_cast<uint16_t>(sign | (magnitude - 0x38000000u + 0xfffu + odd) >> 13);
}

}  // namespace handheld::flash
