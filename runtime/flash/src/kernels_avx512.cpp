#include "kernels.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__) && \
    defined(__AVX512VBMI__)

#include <immintrin.h>

namespace handheld::flash {
namespace {

struct Simd {
  static constexpr uint32_t lanes = 16;
  using Vector = __m512;

  static Vector zero() { return _mm512_setzero_ps(); }
  static Vector broadcast(float value) { return _mm512_set1_ps(value); }
  static Vector load(const float* from) { return _mm512_loadu_ps(from); }
  static Vector load_bytes(const uint8_t* from) { return _mm512_castsi512_ps(_mm512_loadu_si512(from)); }
  static void store(float* to, Vector from) { _mm512_storeu_ps(to, from); }
  static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
  static float sum(Vector a) { return _mm512_reduce_add_ps(a); }
  static float half(const uint8_t* from) {
    short half;
    __builtin_memcpy(&half, from, sizeof half);
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
  }
  static void halves(const uint8_t* from, float factor, float* out) {
    store(out, multiply(_mm512_cvtph_ps(load32(from)), broadcast(factor)));
  }

  static __m256i load32(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
  static __m128i load16(const uint8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }

  static void decode_fp16(const uint8_t* block, Vector* out) {
    for (size_t v = 0; v < 2; ++v) {
      out[v] = _mm512_cvtph_ps(load32(block + 32 * v));
    }
  }
  // One load of 32 weights, each of which is moved into the highest byte of a lane: 2^24 times its value.
  static constexpr float int8_unit = 0x1p-24f;
  static void decode_int8(const uint8_t* block, Vector* out) {
    const __m512i bytes = _mm512_castsi256_si512(load32(block));
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i first = _mm512_slli_epi32(lane, 24);
    const __m512i second = _mm512_slli_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(16)), 24);
    constexpr __mmask64 highest = 0x8888888888888888u;
    out[0] = _mm512_cvtepi32_ps(_mm512_maskz_permutexvar_epi8(highest, first, bytes));
    out[1] = _mm512_cvtepi32_ps(_mm512_maskz_permutexvar_epi8(highest, second, bytes));
  }
  static constexpr float int4_unit = 1;
  static void decode_int4(const uint8_t* block, Vector* out) {
    look_up(block, _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7), out);
  }
  static void decode_nibbles(const uint8_t* block, Vector* out) {
    look_up(block, _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), out);
  }
  // A table turns a nibble into its float in one instruction, and ignores the bits above the nibble.
  static void look_up(const uint8_t* block, Vector values, Vector* out) {
    const __m512i packed = _mm512_cvtepu8_epi32(load16(block));
    out[0] = _mm512_permutexvar_ps(packed, values);
    out[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(packed, 4), values);
  }

  static Vector odd(Vector a) { return _mm512_maskz_mov_ps(0xaaaa, a); }
  using Codes = __m256i;
  static Codes load_codes(const int8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
  // Two products sum to at most 2 * 127 * 127: no saturation.
  static Vector dot_bytes(__m256i bytes, Codes x) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_maddubs_epi16(bytes, x)));
  }
  // The sign of x goes to the weights, as in kernels_avx2.cpp.
  static Vector dot_int8(const uint8_t* block, Codes x) {
    const __m256i weights = load32(block);
    return dot_bytes(_mm256_abs_epi8(x), _mm256_sign_epi8(weights, x));
  }
  static Vector dot_nibbles(const uint8_t* block, Codes x) {
    const __m256i twice = _mm256_broadcastsi128_si256(load16(block));
    const __m256i shifted = _mm256_srlv_epi64(twice, _mm256_setr_epi64x(0, 0, 4, 4));
    return dot_bytes(_mm256_and_si256(shifted, _mm256_set1_epi8(15)), x);
  }
};

#include "kernels_rows.h"
#include "kernels_quantised.h"
#include "kernels_columns.h"
#include "kernels_nibbles_x86.h"
#include "kernels_ternary_x86.h"

}  // namespace

const Kernels* avx512_kernels() {
  static constexpr Kernels kernels{HH_FLASH_KERNELS_AVX512, dots, accumulate, quantise, quantised_dots_x86,
                                    quantised_accumulate, ternary_dots};
  return &kernels;
}

}  // namespace handheld::flash

#else

namespace handheld::flash {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace handheld::flash

#endif
