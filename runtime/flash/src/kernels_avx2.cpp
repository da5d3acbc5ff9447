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
  static Vector widen(__m128i low8) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low8)); }
  static void widen16(__m128i bytes, Vector* out) {
    out[0] = widen(bytes);
    out[1] = widen(_mm_srli_si128(bytes, 8));
  }

  static void decode_fp16(const uint8_t* block, Vector* out) {
    for (size_t v = 0; v < 4; ++v) out[v] = _mm256_cvtph_ps(load16(block + 16 * v));
  }
  static constexpr float int8_unit = 1;
  static void decode_int8(const uint8_t* block, Vector* out) {
    widen16(load16(block), out);
    widen16(load16(block + 16), out + 2);
  }
  static void decode_nibbles(const uint8_t* block, Vector* out) {
    const __m128i packed = load16(block);
    const __m128i low_bits = _mm_set1_epi8(15);
    widen16(_mm_and_si128(packed, low_bits), out);
    widen16(_mm_and_si128(_mm_srli_epi16(packed, 4), low_bits), out + 2);
  }
  static void decode_int4(const uint8_t* block, Vector* out) {
    const __m128i packed = load16(block);
    const __m128i low_bits = _mm_set1_epi8(15);
    const __m128i eight = _mm_set1_epi8(8);
    widen16(_mm_sub_epi8(_mm_and_si128(packed, low_bits), eight), out);
    widen16(_mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(packed, 4), low_bits), eight), out + 2);
  }
};

#include "kernels_rows.h"
#include "kernels_ternary_x86.h"

}  // namespace

const Kernels* avx2_kernels() {
  static constexpr Kernels kernels{HH_FLASH_KERNELS_AVX2, dots, accumulate, ternary_dot};
  return &kernels;
}

}  // namespace handheld::flash

#else

namespace handheld::flash {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace handheld::flash

#endif
