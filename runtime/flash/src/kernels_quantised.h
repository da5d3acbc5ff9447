// The row kernels in integers, on activations rounded to 8 bits: included after kernels_rows.h, and written over the same
// `Simd`. 32 products become a few sums before anything is converted to fp32, which is most of what the kernels in fp32 do.

// Loops over whole blocks in memory of their own are what compilers vectorise.
inline void quantise(const float* x, const QuantisedVector& to) {
  for (uint32_t group = 0; group < to.d / to.group_size; ++group) {
    const uint32_t first = group * to.group_size;
    const uint32_t last = first + to.group_size;
    // Magnitudes compare as their bits do, and a NaN's are the largest.
    int32_t largest_bits = 0;
    for (uint32_t at = first; at < last; at += kBlock) {
      int32_t block[kBlock];
      __builtin_memcpy(block, x + at, sizeof block);
      for (uint32_t i = 0; i < kBlock; ++i) {
        const int32_t bits = block[i] & 0x7fffffff;
        largest_bits = largest_bits > bits ? largest_bits : bits;
      }
    }
    float largest;
    __builtin_memcpy(&largest, &largest_bits, sizeof largest);
    const bool finite = largest_bits < 0x7f800000;
    // The inverse of a tiny number may not be finite.
    const float inverse = finite && largest > 0x1p-120f ? 127 / largest : 0;
    int32_t sum = 0;
    for (uint32_t at = first; at < last; at += kBlock) {
      float block[kBlock];
      int32_t codes[kBlock];
      int8_t bytes[kBlock];
      // 3 * 2^22 leaves no bits for a fraction: the lowest ones are the rounded number.
      for (uint32_t i = 0; i < kBlock; ++i) block[i] = x[at + i] * inverse + 0x1.8p23f;
      __builtin_memcpy(codes, block, sizeof codes);
      for (uint32_t i = 0; i < kBlock; ++i) codes[i] -= 0x4b400000;
      for (uint32_t i = 0; i < kBlock; ++i) sum += codes[i];
      for (uint32_t i = 0; i < kBlock; ++i) bytes[i] = static_cast<int8_t>(codes[i]);
      __builtin_memcpy(to.values + at, bytes, sizeof bytes);
    }
    const float scale = largest / 127;
    const float total = finite ? static_cast<float>(sum) * scale : largest;
    to.scales[group] = scale;
    to.offsets[group] = -total;
    to.pairs[2 * group] = scale;
    to.pairs[2 * group + 1] = total;
  }
}

// Of some rows and the groups of a stretch: the rows' scales times those of x, and what the rows' minimums add.
template <typename Weights, size_t rows_at_once>
struct Products {
  static constexpr bool minimums = Weights::halves == 2;
  float scales[rows_at_once][kHalves];
  Simd::Vector added[rows_at_once];  // with minimums, in odd lanes only
  float added_last[rows_at_once];

  Products() {
    UNROLL for (size_t r = 0; r < rows_at_once; ++r) {
      added[r] = Simd::zero();
      added_last[r] = 0;
    }
  }

  void load(const RowFormat& format, const uint8_t* const* rows, uint32_t first, uint32_t groups,
            const QuantisedVector& x) {
    const size_t skipped = size_t{first} * Weights::halves;
    const size_t at = Weights::row_bytes(format.d) + 2 * skipped;
    const float* factors = (minimums ? x.pairs : x.scales) + skipped;
    const float* offsets = x.offsets + first;
    const uint32_t count = groups * Weights::halves;
    for (size_t r = 0; r < rows_at_once; ++r) {
      if (count == kHalves) {
        float* out = scales[r];
        Simd::halves(rows[r] + at, 1, out);
        UNROLL for (uint32_t i = 0; i < kHalves; i += Simd::lanes) {
          const Simd::Vector halves = Simd::load(out + i);
          const Simd::Vector product = Simd::multiply(halves, Simd::load(factors + i));
          Simd::store(out + i, product);
          if constexpr (minimums) {
            added[r] = Simd::add(added[r], product);
          } else if constexpr (Weights::above != 0) {
            const Simd::Vector above = Simd::multiply(halves, Simd::broadcast(Weights::above));
            added[r] = Simd::multiply_add(above, Simd::load(offsets + i), added[r]);
          }
        }
      } else {
        // What follows a row's last scale may not be memory.
        for (uint32_t i = 0; i < count; ++i) {
          const float half = Simd::half(rows[r] + at + 2 * i);
          scales[r][i] = half * factors[i];
          if constexpr (minimums) {
            if (i % 2 == 1) added_last[r] += scales[r][i];
          } else if constexpr (Weights::above != 0) {
            added_last[r] += half * Weights::above * offsets[i];
          }
        }
      }
    }
  }

  Simd::Vector scale(size_t row, uint32_t group) const { return Simd::broadcast(scales[row][group * Weights::halves]); }
  float sum(size_t row, Simd::Vector total) const {
    const Simd::Vector rest = minimums ? Simd::odd(added[row]) : added[row];
    return Simd::sum(Simd::add(total, rest)) + added_last[row];
  }
};

template <typename Weights, size_t rows_at_once>
void quantised_dots_of(const RowFormat& format, const uint8_t* const* rows, const QuantisedVector& x, float* out,
                       const uint8_t* const* ahead) {
  const uint8_t* row[rows_at_once];
  const uint8_t* next[rows_at_once];
  Simd::Vector total[rows_at_once];
  UNROLL for (size_t r = 0; r < rows_at_once; ++r) {
    row[r] = rows[r];
    next[r] = ahead == nullptr ? rows[r] : ahead[r];
    total[r] = Simd::zero();
  }
  Products<Weights, rows_at_once> products;
  const Stretch<Weights> stretch(format);
  for (uint32_t begin = 0; begin < format.d; begin += stretch.weights) {
    const uint32_t end = format.d - begin < stretch.weights ? format.d : begin + stretch.weights;
    fetch_scales_ahead<Weights, rows_at_once>(format, ahead, stretch.group(begin));
    products.load(format, rows, stretch.group(begin), stretch.group(end - begin), x);
    for (uint32_t at = begin; at < end; at += kBlock) {
      fetch_ahead<Weights, rows_at_once>(ahead != nullptr, next, at);
      const Simd::Codes input = Simd::load_codes(x.values + at);
      const uint32_t group = stretch.group(at - begin);
      UNROLL for (size_t r = 0; r < rows_at_once; ++r) {
        const Simd::Vector block = Weights::dot(row[r] + Weights::row_bytes(at), input);
        total[r] = Simd::multiply_add(products.scale(r, group), block, total[r]);
      }
    }
  }
  UNROLL for (size_t r = 0; r < rows_at_once; ++r) out[r] = products.sum(r, total[r]);
}

template <typename Weights>
void quantised_dots_by_count(const RowFormat& format, const uint8_t* const* rows, size_t count,
                             const QuantisedVector& x, float* out, const uint8_t* const* ahead) {
  if (count == kRowsAtOnce) return quantised_dots_of<Weights, kRowsAtOnce>(format, rows, x, out, ahead);
  for (size_t r = 0; r < count; ++r) quantised_dots_of<Weights, 1>(format, rows + r, x, out + r, nullptr);
}

void quantised_dots(const RowFormat& format, const uint8_t* const* rows, size_t count, const QuantisedVector& x,
                    float* out, const uint8_t* const* ahead) {
  switch (format.dtype) {
    case HH_FLASH_INT8:
      return quantised_dots_by_count<Int8>(format, rows, count, x, out, ahead);
    case HH_FLASH_INT4:
      return quantised_dots_by_count<Int4>(format, rows, count, x, out, ahead);
    case HH_FLASH_INT4M:
      return quantised_dots_by_count<Int4m>(format, rows, count, x, out, ahead);
    case HH_FLASH_FP32:
    case HH_FLASH_FP16:
      return;  // have no scales: nothing to round for
  }
}
