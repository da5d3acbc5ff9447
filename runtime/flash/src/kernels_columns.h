// Sums of down columns in integers: included after kernels_quantised.h.
//
// A column adds to y its coefficient times its scales times its weights. The first two are rounded, with one step per group
// for all columns of a call, so that products of many columns add up before anything is converted: with nibbles to 8 bits
// and in 16, with bytes to 12 bits and in 32.

// Compilers make of these what an instruction set has.
using Floats = float __attribute__((vector_size(32)));
using Ints = int32_t __attribute__((vector_size(32)));
using Unsigned = uint32_t __attribute__((vector_size(32)));  // may overflow
using Shorts = int16_t __attribute__((vector_size(16)));

constexpr uint32_t kEight = 8;  // lanes of these, and groups whose scales are treated at once

// Codes are Shorts of nibbles and Ints of bytes: of each pair and group the first column's in the lower half of a lane, the
// second's in the upper half.
template <typename Codes>
struct PairedColumns {
  const uint8_t* const* rows;  // of pair p 2 p and 2 p + 1
  size_t pairs;
  uint32_t at;  // bytes from a row's start to the first block
  const Codes* codes;
  uint32_t lanes[2];              // each block's in `codes`
  const uint8_t* const* fetched;  // of pair p 2 p: the byte that is needed soon
  uint32_t fetched_at;
};

// Each instruction set's file defines these. sums[4 b + v]: of weights 8 v .. 8 v + 7 of block b.
inline void sum_columns(const PairedColumns<Shorts>& nibbles, uint32_t blocks, Shorts* sums);
// y += step * sums + added, of a block.
inline void add_columns(const PairedColumns<Ints>& bytes, float step, float added, float* y);
// Widens eight fp16 numbers, or eight pairs, of which the first and the second ones are apart.
inline void eight_halves(const uint8_t* from, float* out);
inline void eight_pairs(const uint8_t* from, float* even, float* odd);

template <typename Weights>
struct ColumnTraits {
  using Codes = Shorts;  // and what they sum to
  static constexpr uint32_t blocks = 2;  // that are treated at once
  static constexpr float largest_code = 127;
  // 16 bits hold 15 times that.
  static constexpr float largest_sum = 32767 / 15;
  static constexpr float middle = 7.5f;  // of stored weights
  static constexpr int32_t low_half = 255;
  static constexpr uint32_t half_bits = 8;
};

template <>
struct ColumnTraits<Int8> {
  using Codes = Ints;
  static constexpr uint32_t blocks = 1;
  static constexpr float largest_code = 2047;
  // 32 bits hold 128 * 256 times that: there may be 8 bits of zeros below each weight.
  static constexpr float largest_sum = 65535;
  static constexpr float middle = 0;
  static constexpr int32_t low_half = 0xffff;
  static constexpr uint32_t half_bits = 16;
};

// The coefficients of a call's columns times their scales in some groups, rounded.
template <typename Weights>
struct RoundedColumns {
  using Traits = ColumnTraits<Weights>;
  typename Traits::Codes codes[kColumnsAtOnce / 2];
  float steps[kEight];
  float added[kEight];  // what does not depend on the weights

  // `fetched` of each row at that byte is needed soon; null: nothing is.
  void round(const RowFormat& format, const uint8_t* const* rows, size_t count, const float* coefficients,
             uint32_t first, uint32_t groups, const uint8_t* const* fetched, size_t fetched_at) {
    Floats products[kColumnsAtOnce];
    Floats sum{};
    Floats minimums{};
    Floats magnitudes{};
    Ints largest{};
    for (size_t r = 0; r < count; ++r) {
      if (fetched != nullptr) __builtin_prefetch(fetched[r] + fetched_at);
      const uint8_t* scales = rows[r] + Weights::row_bytes(format.d) + 2 * size_t{first} * Weights::halves;
      // Those of eight are converted, and what follows a row's last one may not be memory.
      uint8_t copied[2 * kEight * Weights::halves];
      if (groups < kEight) {
        __builtin_memset(copied, 0, sizeof copied);
        __builtin_memcpy(copied, scales, 2 * size_t{groups} * Weights::halves);
        scales = copied;
      }
      float wide[2][kEight];
      if constexpr (Weights::halves == 2) {
        eight_pairs(scales, wide[0], wide[1]);
      } else {
        eight_halves(scales, wide[0]);
      }
      Floats scale;
      __builtin_memcpy(&scale, wide[0], sizeof scale);
      products[r] = coefficients[r] * scale;
      if constexpr (Weights::halves == 2) {
        Floats minimum;
        __builtin_memcpy(&minimum, wide[1], sizeof minimum);
        minimums += coefficients[r] * minimum;
      }
      sum += products[r];
      const Ints bits = (Ints)products[r] & 0x7fffffff;
      magnitudes += (Floats)bits;
      largest = bits > largest ? bits : largest;
    }
    // Of what magnitudes of codes sum to, rounding is up to a half for each.
    const Floats by_sum = magnitudes * (1 / (Traits::largest_sum - kColumnsAtOnce / 2));
    const Floats by_largest = (Floats)largest * (1 / Traits::largest_code);
    const Floats step = by_sum > by_largest ? by_sum : by_largest;
    // What is not finite shows in y through its step. The inverse of a tiny number may not be finite.
    const Ints finite = magnitudes < 0x1p127f;
    const Floats inverse = (Floats)((Ints)(1.0f / step) & finite & (step > 0x1p-120f));
    const Floats shown = finite ? step : magnitudes;
    Unsigned total{};
    if (count % 2 == 1) products[count] = Floats{};
    for (size_t r = 0; r < count; r += 2) {
      const Ints even = (Ints)(products[r] * inverse + kRounder);
      const Ints odd = (Ints)(products[r + 1] * inverse + kRounder);
      total += (Unsigned)even + (Unsigned)odd;
      const Ints both = (even & Traits::low_half) | (Ints)((Unsigned)odd << Traits::half_bits);
      codes[r / 2] = __builtin_convertvector(both, typename Traits::Codes);
    }
    if constexpr (Weights::halves == 1) minimums = -Weights::above * sum;
    // Codes are to differ from what they stand for where weights differ from their middle, and nowhere else.
    const Ints codes_sum = (Ints)(total - static_cast<uint32_t>(count + count % 2) * uint32_t{kRounderBits});
    minimums += Traits::middle * (sum - shown * __builtin_convertvector(codes_sum, Floats));
    __builtin_memcpy(steps, &shown, sizeof steps);
    __builtin_memcpy(added, &minimums, sizeof added);
  }
};

// y += step * sums + added, of a block.
template <typename Sums>
inline void add_block(const Sums* sums, float step, float added, float* y) {
  UNROLL for (uint32_t v = 0; v < kBlock / kEight; ++v) {
    Floats out;
    __builtin_memcpy(&out, y + v * kEight, sizeof out);
    out += added + step * __builtin_convertvector(sums[v], Floats);
    __builtin_memcpy(y + v * kEight, &out, sizeof out);
  }
}

template <typename Weights>
void accumulate_columns(const RowFormat& format, const uint8_t* const* rows, size_t count, const float* coefficients,
                        float* y, const uint8_t* const* ahead) {
  const size_t pairs = (count + 1) / 2;
  const uint8_t* row[kColumnsAtOnce];
  const uint8_t* next[kColumnsAtOnce];
  for (size_t r = 0; r < 2 * pairs; ++r) {
    // A column that is missing in the last pair has code 0.
    const size_t there = r < count ? r : count - 1;
    row[r] = rows[there];
    next[r] = ahead == nullptr ? rows[there] : ahead[there];
  }
  const uint32_t shift = static_cast<uint32_t>(__builtin_ctz(format.group_size));
  const uint32_t stretch = kEight << shift;
  // So many weights on in a row, or in one of those that follow, is fetched what comes: what all rows need would not fit
  // the nearest cache, and asked for all at once would be waited for.
  using Traits = ColumnTraits<Weights>;
  constexpr uint32_t kStep = Traits::blocks * kBlock;  // weights, of 32 bytes
  constexpr auto lead = static_cast<uint32_t>(kLeadBytes * kBlock / Weights::row_bytes(kBlock));
  const uint32_t far = format.d < lead ? format.d : lead;
  const auto soon = [&](uint32_t at) { return at + far < format.d ? row : next; };
  const auto soon_at = [&](uint32_t at) { return at + far < format.d ? at + far : at + far - format.d; };
  RoundedColumns<Weights> columns;
  for (uint32_t begin = 0; begin < format.d; begin += stretch) {
    const uint32_t end = format.d - begin < stretch ? format.d : begin + stretch;
    const uint32_t scales_at = 2 * Weights::halves * (soon_at(begin) >> shift);
    columns.round(format, row, count, coefficients, begin >> shift, (end - begin) >> shift,
                  scales_at % 64 == 0 ? soon(begin) : nullptr, Weights::row_bytes(format.d) + scales_at);
    for (uint32_t at = begin; at < end; at += kStep) {
      const uint32_t blocks = end - at < kStep ? 1 : Traits::blocks;
      const uint32_t lanes[2] = {(at - begin) >> shift, (at - begin + (blocks - 1) * kBlock) >> shift};
      // A cache line has the weights of two steps: one fetches those of the first columns of all pairs, one the others'.
      const size_t column = at / kStep % 2;
      const auto fetched_at = static_cast<uint32_t>(Weights::row_bytes(soon_at(at)) / 64 * 64);
      const auto bytes_at = static_cast<uint32_t>(Weights::row_bytes(at));
      const PairedColumns<typename Traits::Codes> paired{
          row, pairs, bytes_at, columns.codes, {lanes[0], lanes[1]}, soon(at) + column, fetched_at};
      if constexpr (Traits::blocks == 1) {
        add_columns(paired, columns.steps[lanes[0]], columns.added[lanes[0]], y + at);
      } else {
        Shorts sums[kStep / kEight];
        sum_columns(paired, blocks, sums);
        for (uint32_t b = 0; b < blocks; ++b) {
          add_block(sums + b * kBlock / kEight, columns.steps[lanes[b]], columns.added[lanes[b]], y + at + b * kBlock);
        }
      }
    }
  }
}

void quantised_accumulate(const RowFormat& format, const uint8_t* const* rows, size_t count, const float* coefficients,
                          float* y, const uint8_t* const* ahead) {
  switch (format.dtype) {
    case HH_FLASH_INT4:
      return accumulate_columns<Int4>(format, rows, count, coefficients, y, ahead);
    case HH_FLASH_INT4M:
      return accumulate_columns<Int4m>(format, rows, count, coefficients, y, ahead);
    case HH_FLASH_INT8:
      return accumulate_columns<Int8>(format, rows, count, coefficients, y, ahead);
    case HH_FLASH_FP32:
    case HH_FLASH_FP16:
      return;  // have no scales: nothing to round with
  }
}
