// Two-bit rows with 256-bit registers, included by the AVX2 and AVX-512 files inside their anonymous namespaces.

// The products of 64 codes, 0 .. 3, with as many bytes, in eight sums.
inline __m256i multiply_codes(__m256i first, __m256i first_x, __m256i second, __m256i second_x) {
#ifdef __AVX512VNNI__
  return _mm256_dpbusd_epi32(_mm256_dpbusd_epi32(_mm256_setzero_si256(), first, first_x), second, second_x);
#else
  // Two pairs sum to at most 4 * 3 * 127: no saturation.
  const __m256i sums = _mm256_add_epi16(_mm256_maddubs_epi16(first, first_x), _mm256_maddubs_epi16(second, second_x));
  return _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
#endif
}

inline __m256i spread_codes(const uint8_t* block) {
  int64_t packed;
  __builtin_memcpy(&packed, block, sizeof packed);
  const __m256i shifted = _mm256_srlv_epi64(_mm256_set1_epi64x(packed), _mm256_setr_epi64x(0, 2, 4, 6));
  return _mm256_and_si256(shifted, _mm256_set1_epi8(3));
}

inline __m256i load_values(const int8_t* values) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
}

// Some rows together, so that they share x and none waits for its own sums. The rows that follow are fetched meanwhile:
// reading four rows and their scales in turn is more than a processor foresees.
template <size_t rows_at_once>
inline void ternary_dots_of(const uint8_t* const* row, const QuantisedVector& x, float* out) {
  constexpr uint32_t kGroups = 16;  // whose scales are converted at once
  __m256 total[rows_at_once];
  UNROLL for (size_t r = 0; r < rows_at_once; ++r) total[r] = _mm256_setzero_ps();
  const uint32_t groups = x.d / x.group_size;
  const size_t stride = x.d / 4 + 2 * size_t{groups};
  const uint8_t* fetched = row[0] + rows_at_once * stride;
  const uint8_t* wanted = fetched;
  for (uint32_t begin = 0; begin < groups; begin += kGroups) {
    const uint32_t some = groups - begin < kGroups ? groups - begin : kGroups;
    float scales[rows_at_once][kGroups];
    for (size_t r = 0; r < rows_at_once; ++r) {
      const uint8_t* halves = row[r] + x.d / 4 + 2 * size_t{begin};
      uint32_t g = 0;
      for (; g + 8 <= some; g += 8) {
        const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(halves + 2 * g));
        const __m256 wide = _mm256_cvtph_ps(eight);
        _mm256_storeu_ps(scales[r] + g, _mm256_mul_ps(wide, _mm256_loadu_ps(x.scales + begin + g)));
        total[r] = _mm256_fmadd_ps(wide, _mm256_loadu_ps(x.offsets + begin + g), total[r]);
      }
      for (; g < some; ++g) {
        const float scale = Simd::half(halves + 2 * g);
        scales[r][g] = scale * x.scales[begin + g];
        total[r] = _mm256_add_ps(total[r], _mm256_zextps128_ps256(_mm_set_ss(scale * x.offsets[begin + g])));
      }
    }
    for (uint32_t g = 0; g < some; ++g) {
      wanted += rows_at_once * stride / groups + 1;
      for (; fetched < wanted; fetched += 64) __builtin_prefetch(fetched);
      const uint32_t first = (begin + g) * x.group_size;
      const uint32_t last = first + x.group_size;
      __m256i dot[rows_at_once];
      UNROLL for (size_t r = 0; r < rows_at_once; ++r) dot[r] = _mm256_setzero_si256();
      uint32_t at = first;
      for (; at + 2 * kBlock <= last; at += 2 * kBlock) {
        const __m256i x1 = load_values(x.values + at);
        const __m256i x2 = load_values(x.values + at + kBlock);
        UNROLL for (size_t r = 0; r < rows_at_once; ++r) {
          const uint8_t* block = row[r] + at / 4;
          dot[r] = _mm256_add_epi32(dot[r], multiply_codes(spread_codes(block), x1, spread_codes(block + 8), x2));
        }
      }
      if (at < last) {
        const __m256i none = _mm256_setzero_si256();
        UNROLL for (size_t r = 0; r < rows_at_once; ++r) {
          dot[r] = _mm256_add_epi32(
              dot[r], multiply_codes(spread_codes(row[r] + at / 4), load_values(x.values + at), none, none));
        }
      }
      UNROLL for (size_t r = 0; r < rows_at_once; ++r) {
        total[r] = _mm256_fmadd_ps(_mm256_broadcast_ss(&scales[r][g]), _mm256_cvtepi32_ps(dot[r]), total[r]);
      }
    }
  }
  for (size_t r = 0; r < rows_at_once; ++r) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(total[r]), _mm256_extractf128_ps(total[r], 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    out[r] = _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
}

inline void ternary_dots(const uint8_t* rows, size_t count, const QuantisedVector& x, float* out) {
  const size_t stride = x.d / 4 + 2 * size_t{x.d / x.group_size};
  size_t i = 0;
  for (; i + kRowsAtOnce <= count; i += kRowsAtOnce) {
    const uint8_t* four[kRowsAtOnce];
    UNROLL for (size_t r = 0; r < kRowsAtOnce; ++r) four[r] = rows + (i + r) * stride;
    ternary_dots_of<kRowsAtOnce>(four, x, out + i);
  }
  for (; i < count; ++i) {
    const uint8_t* one = rows + i * stride;
    ternary_dots_of<1>(&one, x, out + i);
  }
}
