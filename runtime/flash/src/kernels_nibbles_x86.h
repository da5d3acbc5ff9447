// Nibbles times rounded activations with 256-bit registers, included by the AVX2 and AVX-512 files after
// kernels_quantised.h and kernels_columns.h. In groups of 32, which is what checkpoints have mostly: two groups share all instructions, one in
// each half of a register, and scales stay in registers.

inline float sum_lanes(__m256 a) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// The products of two groups, one in each half: `low` and `high` are their first and second 16 codes.
inline __m256 dot_two_groups(__m256i low, __m256i low_x, __m256i high, __m256i high_x) {
#ifdef __AVX512VNNI__
  return _mm256_cvtepi32_ps(_mm256_dpbusd_epi32(_mm256_dpbusd_epi32(_mm256_setzero_si256(), low, low_x), high, high_x));
#else
  // Two pairs sum to at most 4 * 15 * 127: no saturation.
  const __m256i sums = _mm256_add_epi16(_mm256_maddubs_epi16(low, low_x), _mm256_maddubs_epi16(high, high_x));
  return _mm256_cvtepi32_ps(_mm256_madd_epi16(sums, _mm256_set1_epi16(1)));
#endif
}

// The first `count` of 8; the others are zeros. What follows them may not be memory, so that the 16 bytes that end with
// them are read: the row's codes lie before.
inline __m128i load_halves(const uint8_t* from, uint32_t count) {
  if (count == 8) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  static constexpr uint8_t kBytes[32] = {0,    1,    2,    3,    4,    5,    6,    7,    8,    9,    10,
                                         11,   12,   13,   14,   15,   0x80, 0x80, 0x80, 0x80, 0x80, 0x80,
                                         0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80};
  const uint32_t skipped = 16 - 2 * count;
  const __m128i last = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from - skipped));
  return _mm_shuffle_epi8(last, _mm_loadu_si128(reinterpret_cast<const __m128i*>(kBytes + skipped)));
}

inline __m256 load_floats(const float* from, uint32_t count) {
  if (count == 8) return _mm256_loadu_ps(from);
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_maskload_ps(from, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane));
}

// What follows is in an order in which those of even groups are in the lower half, those of odd ones in the upper half.
template <typename Weights>
inline __m256 split_halves(__m128i halves) {
  if constexpr (Weights::halves == 2) return _mm256_cvtph_ps(_mm_shuffle_epi32(halves, 0xd8));
  return _mm256_cvtph_ps(
      _mm_shuffle_epi8(halves, _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15)));
}

template <typename Weights>
inline __m256 split_floats(__m256 floats) {
  if constexpr (Weights::halves == 2) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(floats), 0xd8));
  }
  return _mm256_permutevar8x32_ps(floats, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
}

inline __m128i load_16_codes(const int8_t* x) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(x)); }

// Pair `pair` of a step's groups: its scales are one number of each half of `products`. A cache line of each row ahead is
// fetched as the same one of the row is reached: many at once would be waited for.
template <typename Weights, uint32_t pair, size_t rows_at_once>
inline void add_two_groups(const uint8_t* const* row, size_t first, const int8_t* step_x, const __m256* products,
                           const uint8_t* const* ahead, __m256* total) {
  const int8_t* const x = step_x + pair * 2 * kBlock;
  const size_t at = first + pair * kBlock;
  const __m256i low_x = _mm256_set_m128i(load_16_codes(x + kBlock), load_16_codes(x));
  const __m256i high_x = _mm256_set_m128i(load_16_codes(x + kBlock + 16), load_16_codes(x + 16));
  const __m256i nibble = _mm256_set1_epi8(15);
  UNROLL for (size_t r = 0; r < rows_at_once; ++r) {
    if (pair % 2 == 0 && ahead != nullptr) __builtin_prefetch(ahead[r] + at);
    const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row[r] + at));
    const __m256i low = _mm256_and_si256(packed, nibble);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(packed, 4), nibble);
    const __m256 scales = _mm256_permute_ps(products[r], pair * Weights::halves * 0x55);
    total[r] = _mm256_fmadd_ps(scales, dot_two_groups(low, low_x, high, high_x), total[r]);
  }
}

template <typename Weights, size_t rows_at_once>
void paired_dots_of(const RowFormat& format, const uint8_t* const* rows, const QuantisedVector& x, float* out,
                    const uint8_t* const* ahead) {
  constexpr uint32_t kGroups = 8 / Weights::halves;  // of a step
  const uint8_t* row[rows_at_once];
  __m256 total[rows_at_once];
  UNROLL for (size_t r = 0; r < rows_at_once; ++r) {
    row[r] = rows[r];
    total[r] = _mm256_setzero_ps();
  }
  const uint32_t groups = format.d / kBlock;
  for (uint32_t begin = 0; begin < groups; begin += kGroups) {
    const uint32_t some = groups - begin < kGroups ? groups - begin : kGroups;
    const uint32_t halves = some * Weights::halves;
    const size_t scales_at = format.d / 2 + 2 * size_t{begin} * Weights::halves;
    if (ahead != nullptr && begin * Weights::halves % 32 == 0) {
      UNROLL for (size_t r = 0; r < rows_at_once; ++r) __builtin_prefetch(ahead[r] + scales_at);
    }
    const float* const factors = Weights::halves == 2 ? x.pairs : x.scales;
    const __m256 factor = split_floats<Weights>(load_floats(factors + size_t{begin} * Weights::halves, halves));
    __m256 offset;  // for what does not depend on the codes: minimums, in odd lanes, or scales
    if constexpr (Weights::halves == 2) {
      offset = _mm256_blend_ps(_mm256_setzero_ps(), factor, 0xaa);
    } else {
      offset = split_floats<Weights>(load_floats(x.offsets + begin, halves));
      offset = _mm256_mul_ps(offset, _mm256_set1_ps(Weights::above));
    }
    __m256 products[rows_at_once];
    UNROLL for (size_t r = 0; r < rows_at_once; ++r) {
      const __m256 wide = split_halves<Weights>(load_halves(row[r] + scales_at, halves));
      products[r] = _mm256_mul_ps(wide, factor);
      total[r] = _mm256_fmadd_ps(wide, offset, total[r]);
    }
    const size_t at = size_t{begin} * 16;
    const int8_t* const values = x.values + size_t{begin} * kBlock;
    add_two_groups<Weights, 0, rows_at_once>(row, at, values, products, ahead, total);
    if (some > 2) add_two_groups<Weights, 1, rows_at_once>(row, at, values, products, ahead, total);
    if constexpr (kGroups == 8) {
      if (some > 4) add_two_groups<Weights, 2, rows_at_once>(row, at, values, products, ahead, total);
      if (some > 6) add_two_groups<Weights, 3, rows_at_once>(row, at, values, products, ahead, total);
    }
  }
  if constexpr (rows_at_once == 4) {
    const __m256 sums =
        _mm256_hadd_ps(_mm256_hadd_ps(total[0], total[1]), _mm256_hadd_ps(total[2], total[3]));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)));
  } else {
    for (size_t r = 0; r < rows_at_once; ++r) out[r] = sum_lanes(total[r]);
  }
}

template <typename Weights>
inline void nibble_dots(const RowFormat& format, const uint8_t* const* rows, size_t count, const QuantisedVector& x,
                        float* out, const uint8_t* const* ahead) {
  if (format.group_size != kBlock || format.d % (2 * kBlock) != 0) {
    return dots_by_count<QuantisedProducts, Weights>(format, rows, count, x, out, ahead);
  }
  if (count == kRowsAtOnce) return paired_dots_of<Weights, kRowsAtOnce>(format, rows, x, out, ahead);
  for (size_t r = 0; r < count; ++r) paired_dots_of<Weights, 1>(format, rows + r, x, out + r, nullptr);
}

inline void quantised_dots_x86(const RowFormat& format, const uint8_t* const* rows, size_t count,
                               const QuantisedVector& x, float* out, const uint8_t* const* ahead) {
  if (format.dtype == HH_FLASH_INT4M) return nibble_dots<Int4m>(format, rows, count, x, out, ahead);
  if (format.dtype == HH_FLASH_INT4) return nibble_dots<Int4>(format, rows, count, x, out, ahead);
  quantised_dots(format, rows, count, x, out, ahead);
}

inline void eight_halves(const uint8_t* from, float* out) {
  _mm256_storeu_ps(out, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}

inline void eight_pairs(const uint8_t* from, float* even, float* odd) {
  const __m128i apart = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
  const __m128i first = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)), apart);
  const __m128i second = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16)), apart);
  _mm256_storeu_ps(even, _mm256_cvtph_ps(_mm_unpacklo_epi64(first, second)));
  _mm256_storeu_ps(odd, _mm256_cvtph_ps(_mm_unpackhi_epi64(first, second)));
}

// 16 bytes, or 32 of two blocks.
template <uint32_t blocks>
inline __m256i load_blocks_of(const uint8_t* from) {
  if constexpr (blocks == 2) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

// Of two columns, bytes are interleaved: one instruction multiplies both, each with its code.
template <uint32_t blocks>
inline void sum_pairs(const PairedColumns<Shorts>& columns, Shorts* sums) {
  const auto bytes_of = [](uint32_t lane) { return _mm_set1_epi16(static_cast<short>(2 * lane | (2 * lane + 1) << 8)); };
  const __m256i lanes = _mm256_set_m128i(bytes_of(columns.lanes[1]), bytes_of(columns.lanes[0]));
  const __m256i nibble = _mm256_set1_epi8(15);
  __m256i total[4];
  UNROLL for (size_t v = 0; v < 4; ++v) total[v] = _mm256_setzero_si256();
  for (size_t p = 0; p < columns.pairs; ++p) {
    __builtin_prefetch(columns.fetched[2 * p] + columns.fetched_at);
    const __m256i first = load_blocks_of<blocks>(columns.rows[2 * p] + columns.at);
    const __m256i second = load_blocks_of<blocks>(columns.rows[2 * p + 1] + columns.at);
    const __m128i all_codes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(columns.codes + p));
    const __m256i codes = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(all_codes), lanes);
    const __m256i bytes[2] = {_mm256_unpacklo_epi8(first, second), _mm256_unpackhi_epi8(first, second)};
    UNROLL for (size_t v = 0; v < 2; ++v) {
      const __m256i low = _mm256_and_si256(bytes[v], nibble);
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bytes[v], 4), nibble);
      total[v] = _mm256_add_epi16(total[v], _mm256_maddubs_epi16(low, codes));
      total[2 + v] = _mm256_add_epi16(total[2 + v], _mm256_maddubs_epi16(high, codes));
    }
  }
  UNROLL for (size_t v = 0; v < 4; ++v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + v), _mm256_castsi256_si128(total[v]));
    if constexpr (blocks == 2) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(sums + 4 + v), _mm256_extracti128_si256(total[v], 1));
    }
  }
}

inline void sum_columns(const PairedColumns<Shorts>& nibbles, uint32_t blocks, Shorts* sums) {
  if (blocks == 2) return sum_pairs<2>(nibbles, sums);
  sum_pairs<1>(nibbles, sums);
}

// Bytes in the upper half of 16 bits are weights times 256, with their signs. The code of 12 bits leaves room for that.
inline void add_columns(const PairedColumns<Ints>& bytes, float step, float added, float* y) {
  const __m256i zero = _mm256_setzero_si256();
  __m256i total[4];
  UNROLL for (size_t v = 0; v < 4; ++v) total[v] = zero;
  for (size_t p = 0; p < bytes.pairs; ++p) {
    __builtin_prefetch(bytes.fetched[2 * p] + bytes.fetched_at);
    const __m256i first = load_blocks_of<2>(bytes.rows[2 * p] + bytes.at);
    const __m256i second = load_blocks_of<2>(bytes.rows[2 * p + 1] + bytes.at);
    int codes;
    __builtin_memcpy(&codes, reinterpret_cast<const uint8_t*>(bytes.codes + p) + 4 * bytes.lanes[0], sizeof codes);
    const __m256i both = _mm256_set1_epi32(codes);
    const __m256i pairs[2] = {_mm256_unpacklo_epi8(first, second), _mm256_unpackhi_epi8(first, second)};
    UNROLL for (size_t v = 0; v < 2; ++v) {
      const __m256i low = _mm256_unpacklo_epi8(zero, pairs[v]);
      const __m256i high = _mm256_unpackhi_epi8(zero, pairs[v]);
      total[2 * v] = _mm256_add_epi32(total[2 * v], _mm256_madd_epi16(low, both));
      total[2 * v + 1] = _mm256_add_epi32(total[2 * v + 1], _mm256_madd_epi16(high, both));
    }
  }
  // In lower halves are sums of the first 16 weights, in upper ones of the others: to load and store y like that takes
  // less than to put them in order.
  const __m256 steps = _mm256_set1_ps(step / 256);
  UNROLL for (size_t v = 0; v < 4; ++v) {
    float* const first = y + 4 * v;
    float* const second = first + kBlock / 2;
    const __m256 more = _mm256_fmadd_ps(steps, _mm256_cvtepi32_ps(total[v]), _mm256_set1_ps(added));
    _mm_storeu_ps(first, _mm_add_ps(_mm_loadu_ps(first), _mm256_castps256_ps128(more)));
    _mm_storeu_ps(second, _mm_add_ps(_mm_loadu_ps(second), _mm256_extractf128_ps(more, 1)));
  }
}
