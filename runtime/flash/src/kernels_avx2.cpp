#include "kernels.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <immintrin.h>

namespace handheld::flash {
namespace {

struct Simd {
  static constexpr uint32_t lanes = 8;
  using Vector = __m256;

  static Vector zero() { return _mm256_setzero_ps(); }
  static Vector broadcast(float value) { return _mm256_set1_ps(value); }
  static Vector load(const float* from) { return _mm256_loadu_ps(from); }
  static Vector load_bytes(const uint8_t* from) {
    return _mm256_castsi256_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static void store(float* to, Vector from) { _mm256_storeu_ps(to, from); }
  static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
  static float sum(Vector a) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
  static float half(const uint8_t* from) {
    short half;
    __builtin_memcpy(&half, from, sizeof half);
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
  }
  static void halves(const uint8_t* from, float factor, float* out) {
    for (size_t v = 0; v < 2; ++v) store(out + 8 * v, multiply(_mm256_cvtph_ps(load16(from + 16 * v)), broadcast(factor)));
  }

  static __m128i load16(const uint8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }
  static void decode_fp16(const uint8_t* block, Vector* out) {
    for (size_t v = 0; v < 4; ++v) out[v] = _mm256_cvtph_ps(load16(block + 16 * v));
  }
  static __m256i load_twice(const uint8_t* from) { return _mm256_broadcastsi128_si256(load16(from)); }
  // Moves bytes first .. first + 7 into one byte of a lane each: one instruction for eight weights, where sign extension
  // takes two and wants them in the low half.
  static Vector spread(__m256i twice, int first, int to_byte) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i from = _mm256_slli_epi32(_mm256_add_epi32(lane, _mm256_set1_epi32(first)), 8 * to_byte);
    const __m256i zeros = _mm256_set1_epi32(static_cast<int>(0x80808080u & ~(0xffu << (8 * to_byte))));
    return _mm256_cvtepi32_ps(_mm256_shuffle_epi8(twice, _mm256_or_si256(from, zeros)));
  }
  // In the highest byte, signs are right, and a weight is 2^24 times its value.
  static void spread_signed(__m256i twice, Vector* out) {
    out[0] = spread(twice, 0, 3);
    out[1] = spread(twice, 8, 3);
  }
  static void spread_unsigned(__m256i twice, Vector* out) {
    out[0] = spread(twice, 0, 0);
    out[1] = spread(twice, 8, 0);
  }
  static constexpr float int8_unit = 0x1p-24f;
  static void decode_int8(const uint8_t* block, Vector* out) {
    spread_signed(load_twice(block), out);
    spread_signed(load_twice(block + 16), out + 2);
  }
  static constexpr float int4_unit = 0x1p-24f;
  static void decode_int4(const uint8_t* block, Vector* out) {
    const __m256i eight = _mm256_set1_epi8(8);
    const __m256i twice = load_twice(block);
    spread_signed(_mm256_sub_epi8(low_nibbles(twice), eight), out);
    spread_signed(_mm256_sub_epi8(low_nibbles(_mm256_srli_epi16(twice, 4)), eight), out + 2);
  }
  static void decode_nibbles(const uint8_t* block, Vector* out) {
    const __m256i twice = load_twice(block);
    spread_unsigned(low_nibbles(twice), out);
    spread_unsigned(low_nibbles(_mm256_srli_epi16(twice, 4)), out + 2);
  }
  static __m256i low_nibbles(__m256i bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(15)); }

  static Vector odd(Vector a) { return _mm256_blend_ps(zero(), a, 0xaa); }
  using Codes = __m256i;
  static Codes load_codes(const int8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
  // Two products sum to at most 2 * 127 * 127: no saturation.
  static Vector dot_bytes(__m256i bytes, Codes x) {
    return _mm256_cvtepi32_ps(_mm256_madd_epi16(_mm256_maddubs_epi16(bytes, x), _mm256_set1_epi16(1)));
  }
  // The sign of x goes to the weights, which saves the magnitudes of four rows: -128 would keep its own.
  static Vector dot_int8(const uint8_t* block, Codes x) {
    const __m256i weights = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block));
    return dot_bytes(_mm256_abs_epi8(x), _mm256_sign_epi8(weights, x));
  }
  static Vector dot_nibbles(const uint8_t* block, Codes x) {
    const __m256i shifted = _mm256_srlv_epi64(load_twice(block), _mm256_setr_epi64x(0, 0, 4, 4));
    return dot_bytes(low_nibbles(shifted), x);
  }
};

#include "kernels_rows.h"
#include "kernels_quantised.h"
#include "kernels_columns.h"
#include "kernels_nibbles_x86.h"
#include "kernels_ternary_x86.h"

}  // namespace

const Kernels* avx2_kernels() {
  static constexpr Kernels kernels{HH_FLASH_KERNELS_AVX2, dots, accumulate, quantise, quantised_dots_x86,
                                    quantised_accumulate, ternary_dots};
  return &kernels;
}

}  // namespace handheld::flash

#else

namespace handheld::flash {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace handheld::flash

#endif
