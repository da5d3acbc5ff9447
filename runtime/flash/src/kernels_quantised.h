// The row kernels in integers, on activations rounded to 8 bits: included after kernels_rows.h, and written over the same
// `Simd`. 32 products become a few sums before anything is converted to fp32, which is most of what the kernels in fp32 do.

// Added to a number of less than 2^22, it leaves no bits for a fraction: the lowest ones are the rounded number.
constexpr float kRounder = 0x1.8p23f;
constexpr int32_t kRounderBits = 0x4b400000;

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
      for (uint32_t i = 0; i < kBlock; ++i) block[i] = x[at + i] * inverse + kRounder;
      __builtin_memcpy(codes, block, sizeof codes);
      for (uint32_t i = 0; i < kBlock; ++i) codes[i] -= kRounderBits;
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

// How rows are multiplied with rounded activations. Of some rows and the groups of a stretch it holds the rows' scales
// times those of x, and of all groups so far what the rows' minimums add.
template <typename Weights, size_t rows_at_once>
class QuantisedProducts {
 public:
  using Activations = const QuantisedVector&;

  QuantisedProducts() {
    UNROLL for (size_t r = 0; r < rows_at_once; ++r) {
      added_[r] = Simd::zero();
      added_last_[r] = 0;
    }
  }

  static Simd::Codes input(const QuantisedVector& x, uint32_t at) { return Simd::load_codes(x.values + at); }

  void load(const RowFormat& format, const uint8_t* const* rows, uint32_t first, uint32_t groups,
            const QuantisedVector& x) {
    const size_t skipped = size_t{first} * Weights::halves;
    const size_t at = Weights::row_bytes(format.d) + 2 * skipped;
    const float* factors = (minimums ? x.pairs : x.scales) + skipped;
    const float* offsets = x.offsets + first;
    const uint32_t count = groups * Weights::halves;
    for (size_t r = 0; r < rows_at_once; ++r) {
      if (count == kHalves) {
        float* out = scales_[r];
        Simd::halves(rows[r] + at, 1, out);
        UNROLL for (uint32_t i = 0; i < kHalves; i += Simd::lanes) {
          const Simd::Vector halves = Simd::load(out + i);
          const Simd::Vector product = Simd::multiply(halves, Simd::load(factors + i));
          Simd::store(out + i, product);
          if constexpr (minimums) {
            added_[r] = Simd::add(added_[r], product);
          } else if constexpr (Weights::above != 0) {
            const Simd::Vector above = Simd::multiply(halves, Simd::broadcast(Weights::above));
            added_[r] = Simd::multiply_add(above, Simd::load(offsets + i), added_[r]);
          }
        }
      } else {
        // What follows a row's last scale may not be memory.
        for (uint32_t i = 0; i < count; ++i) {
          const float half = Simd::half(rows[r] + at + 2 * i);
          scales_[r][i] = half * factors[i];
          if constexpr (minimums) {
            if (i % 2 == 1) added_last_[r] += scales_[r][i];
          } else if constexpr (Weights::above != 0) {
            added_last_[r] += half * Weights::above * offsets[i];
          }
        }
      }
    }
  }

  Simd::Vector add(size_t row, uint32_t group, const uint8_t* block, Simd::Codes input, Simd::Vector total) const {
    return Simd::multiply_add(Simd::broadcast(scales_[row][group * Weights::halves]), Weights::dot(block, input), total);
  }

  float sum(size_t row, Simd::Vector total) const {
    const Simd::Vector rest = minimums ? Simd::odd(added_[row]) : added_[row];
    return Simd::sum(Simd::add(total, rest)) + added_last_[row];
  }

 private:
  static constexpr bool minimums = Weights::halves == 2;
  float scales_[rows_at_once][kHalves];
  Simd::Vector added_[rows_at_once];  // with minimums, in odd lanes only
  float added_last_[rows_at_once];
};

void quantised_dots(const RowFormat& format, const uint8_t* const* rows, size_t count, const QuantisedVector& x,
                    float* out, const uint8_t* const* ahead) {
  switch (format.dtype) {
    case HH_FLASH_INT8:
      return dots_by_count<QuantisedProducts, Int8>(format, rows, count, x, out, ahead);
    case HH_FLASH_INT4:
      return dots_by_count<QuantisedProducts, Int4>(format, rows, count, x, out, ahead);
    case HH_FLASH_INT4M:
      return dots_by_count<QuantisedProducts, Int4m>(format, rows, count, x, out, ahead);
    case HH_FLASH_FP32:
    case HH_FLASH_FP16:
      return;  // have no scales: nothing to round for
  }
}
