// ARM64 with nothing beyond the base instruction set, so that it runs on every 64-bit phone.
#include "kernels.h"

#if defined(__aarch64__) && defined(__ARM_NEON)

#include <arm_neon.h>

namespace handheld::flash {
namespace {

struct Simd {
  static constexpr uint32_t lanes = 4;
  using Vector = float32x4_t;

  static Vector zero() { return vdupq_n_f32(0); }
  static Vector broadcast(float value) { return vdupq_n_f32(value); }
  static Vector load(const float* from) { return vld1q_f32(from); }
  static Vector load_bytes(const uint8_t* from) { return vreinterpretq_f32_u8(vld1q_u8(from)); }
  static void store(float* to, Vector from) { vst1q_f32(to, from); }
  static Vector add(Vector a, Vector b) { return vaddq_f32(a, b); }
  static Vector multiply(Vector a, Vector b) { return vmulq_f32(a, b); }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return vfmaq_f32(c, a, b); }
  static float sum(Vector a) { return vaddvq_f32(a); }

  static Vector widen_half(uint16x4_t halves) { return vcvt_f32_f16(vreinterpret_f16_u16(halves)); }
  static float half(const uint8_t* from) {
    uint16_t half;
    __builtin_memcpy(&half, from, sizeof half);
    return vgetq_lane_f32(widen_half(vdup_n_u16(half)), 0);
  }
  static void halves(const uint8_t* from, float factor, float* out) {
    for (size_t v = 0; v < 4; ++v) {
      store(out + 4 * v, vmulq_n_f32(widen_half(vreinterpret_u16_u8(vld1_u8(from + 8 * v))), factor));
    }
  }

  static void widen16(int8x16_t bytes, Vector* out) {
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes));
    const int16x8_t high = vmovl_s8(vget_high_s8(bytes));
    out[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(low)));
    out[1] = vcvtq_f32_s32(vmovl_s16(vget_high_s16(low)));
    out[2] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(high)));
    out[3] = vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)));
  }

  static void decode_fp16(const uint8_t* block, Vector* out) {
    for (size_t v = 0; v < 8; ++v) out[v] = widen_half(vreinterpret_u16_u8(vld1_u8(block + 8 * v)));
  }
  static constexpr float int8_unit = 1;
  static void decode_int8(const uint8_t* block, Vector* out) {
    widen16(vreinterpretq_s8_u8(vld1q_u8(block)), out);
    widen16(vreinterpretq_s8_u8(vld1q_u8(block + 16)), out + 4);
  }
  static void decode_nibbles(const uint8_t* block, Vector* out) {
    const uint8x16_t packed = vld1q_u8(block);
    widen16(vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(15))), out);
    widen16(vreinterpretq_s8_u8(vshrq_n_u8(packed, 4)), out + 4);
  }
  static constexpr float int4_unit = 1;
  static void decode_int4(const uint8_t* block, Vector* out) {
    const uint8x16_t packed = vld1q_u8(block);
    const int8x16_t eight = vdupq_n_s8(8);
    widen16(vsubq_s8(vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(15))), eight), out);
    widen16(vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(packed, 4)), eight), out + 4);
  }

  static Vector odd(Vector a) {
    return vreinterpretq_f32_u64(vandq_u64(vreinterpretq_u64_f32(a), vdupq_n_u64(0xffffffff00000000u)));
  }
  using Codes = int8x16x2_t;
  static Codes load_codes(const int8_t* from) { return {{vld1q_s8(from), vld1q_s8(from + 16)}}; }
  // 16 bits hold the sum of two products of bytes, the least of which is -128 * 127.
  static int16x8_t products(int8x16_t a, int8x16_t b) {
    return vmlal_s8(vmull_s8(vget_low_s8(a), vget_low_s8(b)), vget_high_s8(a), vget_high_s8(b));
  }
  static Vector dot_int8(const uint8_t* block, Codes x) {
    const int16x8_t first = products(vreinterpretq_s8_u8(vld1q_u8(block)), x.val[0]);
    const int16x8_t second = products(vreinterpretq_s8_u8(vld1q_u8(block + 16)), x.val[1]);
    return vcvtq_f32_s32(vpadalq_s16(vpaddlq_s16(first), second));
  }
  static Vector dot_nibbles(const uint8_t* block, Codes x) {
    const uint8x16_t packed = vld1q_u8(block);
    const int16x8_t first = products(vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(15))), x.val[0]);
    const int16x8_t second = products(vreinterpretq_s8_u8(vshrq_n_u8(packed, 4)), x.val[1]);
    return vcvtq_f32_s32(vpaddlq_s16(vaddq_s16(first, second)));
  }
};

#include "kernels_rows.h"
#include "kernels_quantised.h"
#include "kernels_columns.h"

inline void eight_halves(const uint8_t* from, float* out) {
  const uint16x8_t halves = vreinterpretq_u16_u8(vld1q_u8(from));
  Simd::store(out, Simd::widen_half(vget_low_u16(halves)));
  Simd::store(out + 4, Simd::widen_half(vget_high_u16(halves)));
}

inline void eight_pairs(const uint8_t* from, float* even, float* odd) {
  const uint16x8_t first = vreinterpretq_u16_u8(vld1q_u8(from));
  const uint16x8_t second = vreinterpretq_u16_u8(vld1q_u8(from + 16));
  const uint16x8_t evens = vuzp1q_u16(first, second);
  const uint16x8_t odds = vuzp2q_u16(first, second);
  Simd::store(even, Simd::widen_half(vget_low_u16(evens)));
  Simd::store(even + 4, Simd::widen_half(vget_high_u16(evens)));
  Simd::store(odd, Simd::widen_half(vget_low_u16(odds)));
  Simd::store(odd + 4, Simd::widen_half(vget_high_u16(odds)));
}

inline void sum_columns(const PairedColumns<Shorts>& columns, uint32_t blocks, Shorts* sums) {
  for (uint32_t b = 0; b < blocks; ++b) {
    int16x8_t total[4];
    UNROLL for (size_t v = 0; v < 4; ++v) total[v] = vdupq_n_s16(0);
    for (size_t p = 0; p < columns.pairs; ++p) {
      if (b == 0) __builtin_prefetch(columns.fetched[2 * p] + columns.fetched_at);
      const int8_t* codes = reinterpret_cast<const int8_t*>(columns.codes + p) + 2 * columns.lanes[b];
      UNROLL for (size_t c = 0; c < 2; ++c) {
        const uint8x16_t packed = vld1q_u8(columns.rows[2 * p + c] + columns.at + 16 * b);
        const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(15)));
        const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(packed, 4));
        const int8x8_t code = vdup_n_s8(codes[c]);
        total[0] = vmlal_s8(total[0], vget_low_s8(low), code);
        total[1] = vmlal_s8(total[1], vget_high_s8(low), code);
        total[2] = vmlal_s8(total[2], vget_low_s8(high), code);
        total[3] = vmlal_s8(total[3], vget_high_s8(high), code);
      }
    }
    UNROLL for (size_t v = 0; v < 4; ++v) vst1q_s16(reinterpret_cast<int16_t*>(sums + 4 * b + v), total[v]);
  }
}

inline void add_columns(const PairedColumns<Ints>& columns, float step, float added, float* y) {
  int32x4_t total[8];
  UNROLL for (size_t v = 0; v < 8; ++v) total[v] = vdupq_n_s32(0);
  for (size_t p = 0; p < columns.pairs; ++p) {
    __builtin_prefetch(columns.fetched[2 * p] + columns.fetched_at);
    int16_t codes[2];
    __builtin_memcpy(codes, reinterpret_cast<const uint8_t*>(columns.codes + p) + 4 * columns.lanes[0], sizeof codes);
    UNROLL for (size_t c = 0; c < 2; ++c) {
      const uint8_t* const weights = columns.rows[2 * p + c] + columns.at;
      UNROLL for (size_t v = 0; v < 4; ++v) {
        const int16x8_t wide = vmovl_s8(vreinterpret_s8_u8(vld1_u8(weights + 8 * v)));
        total[2 * v] = vmlal_n_s16(total[2 * v], vget_low_s16(wide), codes[c]);
        total[2 * v + 1] = vmlal_n_s16(total[2 * v + 1], vget_high_s16(wide), codes[c]);
      }
    }
  }
  UNROLL for (size_t v = 0; v < 8; ++v) {
    const float32x4_t more = vfmaq_n_f32(vdupq_n_f32(added), vcvtq_f32_s32(total[v]), step);
    vst1q_f32(y + 4 * v, vaddq_f32(vld1q_f32(y + 4 * v), more));
  }
}

// Two pairs of codes 0 .. 3 with bytes sum to at most 4 * 3 * 127, so 16 bits hold them.
inline int16x8_t multiply_codes(uint8x8_t packed, const int8_t* x) {
  const uint8x8_t low_bits = vdup_n_u8(3);
  const auto codes = [&](uint8x8_t shifted) { return vreinterpret_s8_u8(vand_u8(shifted, low_bits)); };
  int16x8_t sums = vmull_s8(codes(packed), vld1_s8(x));
  sums = vmlal_s8(sums, codes(vshr_n_u8(packed, 2)), vld1_s8(x + 8));
  sums = vmlal_s8(sums, codes(vshr_n_u8(packed, 4)), vld1_s8(x + 16));
  return vmlal_s8(sums, codes(vshr_n_u8(packed, 6)), vld1_s8(x + 24));
}

template <size_t rows_at_once>
void ternary_dots_of(const uint8_t* const* row, const QuantisedVector& x, float* out) {
  float32x4_t total[rows_at_once];
  float offset[rows_at_once] = {};
  UNROLL for (size_t r = 0; r < rows_at_once; ++r) total[r] = vdupq_n_f32(0);
  for (uint32_t first = 0, group = 0; first < x.d; first += x.group_size, ++group) {
    int32x4_t dot[rows_at_once];
    UNROLL for (size_t r = 0; r < rows_at_once; ++r) dot[r] = vdupq_n_s32(0);
    for (uint32_t at = first; at < first + x.group_size; at += kBlock) {
      UNROLL for (size_t r = 0; r < rows_at_once; ++r) {
        dot[r] = vpadalq_s16(dot[r], multiply_codes(vld1_u8(row[r] + at / 4), x.values + at));
      }
    }
    UNROLL for (size_t r = 0; r < rows_at_once; ++r) {
      const float scale = Simd::half(row[r] + x.d / 4 + 2 * size_t{group});
      offset[r] += scale * x.offsets[group];
      total[r] = vfmaq_n_f32(total[r], vcvtq_f32_s32(dot[r]), scale * x.scales[group]);
    }
  }
  UNROLL for (size_t r = 0; r < rows_at_once; ++r) out[r] = vaddvq_f32(total[r]) + offset[r];
}

void ternary_dots(const uint8_t* const* rows, size_t count, const QuantisedVector& x, float* out) {
  size_t i = 0;
  for (; i + kRowsAtOnce <= count; i += kRowsAtOnce) ternary_dots_of<kRowsAtOnce>(rows + i, x, out + i);
  for (; i < count; ++i) ternary_dots_of<1>(rows + i, x, out + i);
}

}  // namespace

const Kernels* neon_kernels() {
  static constexpr Kernels kernels{HH_FLASH_KERNELS_NEON, dots, accumulate, quantise, quantised_dots,
                                    quantised_accumulate, ternary_dots};
  return &kernels;
}

}  // namespace handheld::flash

#else

namespace handheld::flash {
const Kernels* neon_kernels() { return nullptr; }
}  // namespace handheld::flash

#endif
