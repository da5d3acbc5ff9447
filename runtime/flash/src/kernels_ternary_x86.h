// Two-bit rows with 256-bit registers, included by the AVX2 and AVX-512 files inside their anonymous namespaces after
// kernels_nibbles_x86.h.

// Four blocks' first eight codes, then their second eight, and so on: what shifting packed codes gives.
struct Quarters {
  __m256i codes[4];
};

inline Quarters spread_codes(__m256i packed) {
  const __m256i low_bits = _mm256_set1_epi8(3);
  return {{_mm256_and_si256(packed, low_bits), _mm256_and_si256(_mm256_srli_epi16(packed, 2), low_bits),
           _mm256_and_si256(_mm256_srli_epi16(packed, 4), low_bits),
           _mm256_and_si256(_mm256_srli_epi16(packed, 6), low_bits)}};
}

// Values in the same order; zeros for blocks that are not there.
inline Quarters load_quarters(const int8_t* values, uint32_t blocks) {
  const __m256i none = _mm256_setzero_si256();
  const __m256i first = Simd::load_codes(values);
  const __m256i second = blocks > 1 ? Simd::load_codes(values + kBlock) : none;
  const __m256i third = blocks > 2 ? Simd::load_codes(values + 2 * kBlock) : none;
  const __m256i fourth = blocks > 3 ? Simd::load_codes(values + 3 * kBlock) : none;
  const __m256i a = _mm256_unpacklo_epi64(first, second);
  const __m256i b = _mm256_unpackhi_epi64(first, second);
  const __m256i c = _mm256_unpacklo_epi64(third, fourth);
  const __m256i d = _mm256_unpackhi_epi64(third, fourth);
  return {{_mm256_permute2x128_si256(a, c, 0x20), _mm256_permute2x128_si256(b, d, 0x20),
           _mm256_permute2x128_si256(a, c, 0x31), _mm256_permute2x128_si256(b, d, 0x31)}};
}

// So many values are put in that order, once for all rows of a call.
constexpr uint32_t kArranged = 16384;

inline void arrange(const QuantisedVector& x, int8_t* arranged) {
  for (uint32_t at = 0; at < x.d; at += 4 * kBlock) {
    const Quarters quarters = load_quarters(x.values + at, (x.d - at) / kBlock);
    __builtin_memcpy(arranged + at, &quarters, sizeof quarters);
  }
}

// Two sums for each of four blocks.
inline __m256 multiply_codes(const Quarters& codes, const Quarters& x) {
#ifdef __AVX512VNNI__
  __m256i sums = _mm256_setzero_si256();
  UNROLL for (size_t i = 0; i < 4; ++i) sums = _mm256_dpbusd_epi32(sums, codes.codes[i], x.codes[i]);
  return _mm256_cvtepi32_ps(sums);
#else
  // Eight products of 3 and 127 at most: no saturation.
  __m256i sums = _mm256_maddubs_epi16(codes.codes[0], x.codes[0]);
  UNROLL for (size_t i = 1; i < 4; ++i) {
    sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(codes.codes[i], x.codes[i]));
  }
  return _mm256_cvtepi32_ps(_mm256_madd_epi16(sums, _mm256_set1_epi16(1)));
#endif
}

// Less than four blocks at a row's end: what follows may not be memory.
inline __m256i load_last(const uint8_t* from, uint32_t blocks) {
  const __m256i block = _mm256_setr_epi64x(0, 1, 2, 3);
  const __m256i there = _mm256_cmpgt_epi64(_mm256_set1_epi64x(blocks), block);
  return _mm256_maskload_epi64(reinterpret_cast<const long long*>(from), there);
}

inline __m128i load_last_half(const uint8_t* from) {
  uint16_t half;
  __builtin_memcpy(&half, from, sizeof half);
  return _mm_cvtsi32_si128(half);
}

// Some rows together, so that they share x and none waits for its own sums. `next` are fetched meanwhile: reading four rows
// and their scales in turn is more than a processor foresees.
template <size_t rows_at_once>
inline void ternary_dots_of(const uint8_t* const* row, const uint8_t* const* next, const QuantisedVector& x,
                            const int8_t* arranged, float* out) {
  constexpr uint32_t kGroups = 8;  // whose scales are in a register
  __m256 total[rows_at_once];
  UNROLL for (size_t r = 0; r < rows_at_once; ++r) total[r] = _mm256_setzero_ps();
  const uint32_t groups = x.d / x.group_size;
  const uint32_t blocks_of_group = x.group_size / kBlock;
  // A block's number over this is its group's: times the inverse, which is exact for as many as eight groups have.
  constexpr int kShift = 26;
  const __m256i inverse = _mm256_set1_epi32(static_cast<int>(((1u << kShift) + blocks_of_group - 1) / blocks_of_group));
  // Shifting is faster, where it does.
  const bool is_power = (blocks_of_group & (blocks_of_group - 1)) == 0;
  const int shift = is_power ? __builtin_ctz(blocks_of_group) : -1;
  for (uint32_t begin = 0; begin < groups; begin += kGroups) {
    const uint32_t some = groups - begin < kGroups ? groups - begin : kGroups;
    const __m256 scale = load_floats(x.scales + begin, some);
    const __m256 offset = load_floats(x.offsets + begin, some);
    const size_t scales_at = x.d / 4 + 2 * size_t{begin};
    __m256 products[rows_at_once];
    UNROLL for (size_t r = 0; r < rows_at_once; ++r) {
      if (2 * begin % 64 == 0) __builtin_prefetch(next[r] + scales_at);
      // Of one block, there are not 16 bytes.
      const __m128i halves = x.d == kBlock ? load_last_half(row[r] + scales_at) : load_halves(row[r] + scales_at, some);
      const __m256 wide = _mm256_cvtph_ps(halves);
      products[r] = _mm256_mul_ps(wide, scale);
      total[r] = _mm256_fmadd_ps(wide, offset, total[r]);
    }
    __m256i block = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    const auto add_four = [&](size_t at, auto load) {
      Quarters values;
      __builtin_memcpy(&values, arranged + at, sizeof values);
      const __m256i group =
          shift < 0 ? _mm256_srli_epi32(_mm256_mullo_epi32(block, inverse), kShift) : _mm256_srli_epi32(block, shift);
      const bool new_line = at / 4 % 64 == 0;
      UNROLL for (size_t r = 0; r < rows_at_once; ++r) {
        if (new_line) __builtin_prefetch(next[r] + at / 4);
        const __m256 sums = multiply_codes(spread_codes(load(row[r] + at / 4)), values);
        total[r] = _mm256_fmadd_ps(_mm256_permutevar8x32_ps(products[r], group), sums, total[r]);
      }
      block = _mm256_add_epi32(block, _mm256_set1_epi32(4));
    };
    size_t at = size_t{begin} * x.group_size;
    const size_t end = at + size_t{some} * x.group_size;
    for (; at + 4 * kBlock <= end; at += 4 * kBlock) {
      add_four(at, [](const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); });
    }
    const uint32_t left = static_cast<uint32_t>(end - at) / kBlock;
    if (left != 0) add_four(at, [&](const uint8_t* from) { return load_last(from, left); });
  }
  for (size_t r = 0; r < rows_at_once; ++r) out[r] = sum_lanes(total[r]);
}

inline void ternary_dots(const uint8_t* const* rows, size_t count, const QuantisedVector& x, float* out) {
  if (x.d > kArranged) return portable_kernels().ternary_dots(rows, count, x, out);
  int8_t arranged[kArranged];
  arrange(x, arranged);
  size_t i = 0;
  for (; i + kRowsAtOnce <= count; i += kRowsAtOnce) {
    const uint8_t* next[kRowsAtOnce];
    UNROLL for (size_t r = 0; r < kRowsAtOnce; ++r) next[r] = rows[i + kRowsAtOnce + r < count ? i + kRowsAtOnce + r : i];
    ternary_dots_of<kRowsAtOnce>(rows + i, next, x, arranged, out + i);
  }
  for (; i < count; ++i) ternary_dots_of<1>(rows + i, rows + i, x, arranged, out + i);
}
