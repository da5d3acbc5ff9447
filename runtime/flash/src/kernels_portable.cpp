// Plain C++: for processors without a file of their own, and the reference that the others are tested against.
#include <cstring>

#include "half.h"
#include "kernels.h"

namespace handheld::flash {
namespace {

struct Simd {
  static constexpr uint32_t lanes = 8;
  struct Vector {
    float lane[lanes];
  };

  template <typename Value>
  static Vector fill(Value value) {
    Vector out;
    for (uint32_t i = 0; i < lanes; ++i) out.lane[i] = value(i);
    return out;
  }

  static Vector zero() { return broadcast(0); }
  static Vector broadcast(float value) {
    return fill([&](uint32_t) { return value; });
  }
  static Vector load(const float* from) {
    return fill([&](uint32_t i) { return from[i]; });
  }
  static Vector load_bytes(const uint8_t* from) {
    Vector out;
    std::memcpy(&out, from, sizeof out);
    return out;
  }
  static void store(float* to, const Vector& from) {
    for (uint32_t i = 0; i < lanes; ++i) to[i] = from.lane[i];
  }
  static Vector add(const Vector& a, const Vector& b) {
    return fill([&](uint32_t i) { return a.lane[i] + b.lane[i]; });
  }
  static Vector multiply(const Vector& a, const Vector& b) {
    return fill([&](uint32_t i) { return a.lane[i] * b.lane[i]; });
  }
  static Vector multiply_add(const Vector& a, const Vector& b, const Vector& c) {
    return fill([&](uint32_t i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
  }
  static float sum(const Vector& a) {
    float total = 0;
    for (uint32_t i = 0; i < lanes; ++i) total += a.lane[i];
    return total;
  }
  static float half(const uint8_t* from) { return load_half(from); }
  static void halves(const uint8_t* from, float factor, float* out) {
    for (uint32_t i = 0; i < 16; ++i) out[i] = factor * load_half(from + 2 * i);
  }

  static void decode_fp16(const uint8_t* block, Vector* out) {
    for (uint32_t i = 0; i < kBlock; ++i) out[i / lanes].lane[i % lanes] = load_half(block + 2 * i);
  }
  static constexpr float int8_unit = 1;
  static void decode_int8(const uint8_t* block, Vector* out) {
    for (uint32_t i = 0; i < kBlock; ++i) {
      out[i / lanes].lane[i % lanes] = static_cast<float>(static_cast<int8_t>(block[i]));
    }
  }
  static void decode_nibbles(const uint8_t* block, Vector* out) {
    for (uint32_t i = 0; i < kBlock; ++i) {
      const int nibble = i < 16 ? block[i] & 15 : block[i - 16] >> 4;
      out[i / lanes].lane[i % lanes] = static_cast<float>(nibble);
    }
  }
  static constexpr float int4_unit = 1;
  static void decode_int4(const uint8_t* block, Vector* out) {
    decode_nibbles(block, out);
    for (uint32_t v = 0; v < kBlock / lanes; ++v) out[v] = add(out[v], broadcast(-8));
  }

  static Vector odd(const Vector& a) {
    return fill([&](uint32_t i) { return i % 2 == 1 ? a.lane[i] : 0; });
  }
  using Codes = const int8_t*;
  static Codes load_codes(const int8_t* from) { return from; }
  template <typename Weight>
  static Vector dot(Codes x, Weight weight) {
    return fill([&](uint32_t lane) {
      int sum = 0;
      for (uint32_t i = lane; i < kBlock; i += lanes) sum += weight(i) * x[i];
      return static_cast<float>(sum);
    });
  }
  static Vector dot_int8(const uint8_t* block, Codes x) {
    return dot(x, [&](uint32_t i) { return int{static_cast<int8_t>(block[i])}; });
  }
  static Vector dot_nibbles(const uint8_t* block, Codes x) {
    return dot(x, [&](uint32_t i) { return i < 16 ? block[i] & 15 : block[i - 16] >> 4; });
  }
};

#include "kernels_rows.h"
#include "kernels_quantised.h"
#include "kernels_columns.h"

inline void eight_halves(const uint8_t* from, float* out) {
  for (uint32_t i = 0; i < 8; ++i) out[i] = load_half(from + 2 * i);
}

inline void eight_pairs(const uint8_t* from, float* even, float* odd) {
  for (uint32_t i = 0; i < 8; ++i) {
    even[i] = load_half(from + 4 * i);
    odd[i] = load_half(from + 4 * i + 2);
  }
}

inline void sum_columns(const PairedColumns<Shorts>& columns, uint32_t blocks, Shorts* sums) {
  for (uint32_t i = 0; i < blocks * kBlock; ++i) {
    const uint32_t byte = i / kBlock * 16 + i % 16;
    const uint32_t shift = i % kBlock < 16 ? 0 : 4;
    int sum = 0;
    for (size_t p = 0; p < columns.pairs; ++p) {
      const int both = columns.codes[p][columns.lanes[i / kBlock]];
      const int8_t codes[] = {static_cast<int8_t>(both & 255), static_cast<int8_t>(both >> 8)};
      for (size_t c = 0; c < 2; ++c) sum += codes[c] * ((columns.rows[2 * p + c][columns.at + byte] >> shift) & 15);
    }
    sums[i / kEight][i % kEight] = static_cast<int16_t>(sum);
  }
}

inline void add_columns(const PairedColumns<Ints>& columns, float step, float added, float* y) {
  for (uint32_t i = 0; i < kBlock; ++i) {
    int32_t sum = 0;
    for (size_t p = 0; p < columns.pairs; ++p) {
      const int32_t both = columns.codes[p][columns.lanes[0]];
      const int16_t codes[] = {static_cast<int16_t>(both & 0xffff), static_cast<int16_t>(both >> 16)};
      for (size_t c = 0; c < 2; ++c) {
        sum += codes[c] * static_cast<int8_t>(columns.rows[2 * p + c][columns.at + i]);
      }
    }
    y[i] += added + step * static_cast<float>(sum);
  }
}

float ternary_dot(const uint8_t* codes, const QuantisedVector& x) {
  const uint8_t* scales = codes + x.d / 4;
  float total = 0;
  for (uint32_t first = 0, group = 0; first < x.d; first += x.group_size, ++group) {
    int32_t dot = 0;
    for (uint32_t at = first; at < first + x.group_size; at += kBlock) {
      for (uint32_t i = 0; i < kBlock; ++i) {
        const int code = (codes[at / 4 + i % 8] >> (2 * (i / 8))) & 3;
        dot += code * x.values[at + i];
      }
    }
    const float scale = load_half(scales + 2 * size_t{group});
    total += scale * (x.scales[group] * static_cast<float>(dot) + x.offsets[group]);
  }
  return total;
}

void ternary_dots(const uint8_t* const* rows, size_t count, const QuantisedVector& x, float* out) {
  for (size_t i = 0; i < count; ++i) out[i] = ternary_dot(rows[i], x);
}

}  // namespace

const Kernels& portable_kernels() {
  static constexpr Kernels kernels{HH_FLASH_KERNELS_PORTABLE, dots, accumulate, quantise, quantised_dots,
                                    quantised_accumulate, ternary_dots};
  return kernels;
}

}  // namespace handheld::flash
