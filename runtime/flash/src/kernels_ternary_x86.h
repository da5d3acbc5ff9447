// Ternary rows with 256-bit registers, included by the AVX2 and AVX-512 files inside their anonymous namespaces.

inline __m256i multiply_codes(__m256i total, __m256i codes, __m256i x) {
#ifdef __AVX512VNNI__
  return _mm256_dpbusd_epi32(total, codes, x);
#else
  // Pairs sum to at most 2 * 2 * 127: no saturation.
  return _mm256_add_epi32(total, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1)));
#endif
}

inline float ternary_dot(const uint8_t* codes, const QuantisedVector& x) {
  const uint8_t* scales = codes + x.d / 4;
  const __m256i shifts = _mm256_setr_epi64x(0, 2, 4, 6);
  const __m256i low_bits = _mm256_set1_epi8(3);
  __m256 total = _mm256_setzero_ps();
  for (uint32_t first = 0, group = 0; first < x.d; first += x.group_size, ++group) {
    // Codes are one more than their weight; starting from minus the sum of x takes that back.
    __m256i dot = _mm256_zextsi128_si256(_mm_cvtsi32_si128(-x.sums[group]));
    for (uint32_t at = first; at < first + x.group_size; at += kBlock) {
      int64_t packed;
      __builtin_memcpy(&packed, codes + at / 4, sizeof packed);
      const __m256i spread = _mm256_and_si256(_mm256_srlv_epi64(_mm256_set1_epi64x(packed), shifts), low_bits);
      dot = multiply_codes(dot, spread, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x.values + at)));
    }
    short half;
    __builtin_memcpy(&half, scales + 2 * size_t{group}, sizeof half);
    const __m256 scale = _mm256_mul_ps(_mm256_cvtph_ps(_mm_set1_epi16(half)), _mm256_set1_ps(x.scales[group]));
    total = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dot), total);
  }
  __m128 half_sum = _mm_add_ps(_mm256_castps256_ps128(total), _mm256_extractf128_ps(total, 1));
  half_sum = _mm_add_ps(half_sum, _mm_movehl_ps(half_sum, half_sum));
  return _mm_cvtss_f32(_mm_add_ss(half_sum, _mm_movehdup_ps(half_sum)));
}
