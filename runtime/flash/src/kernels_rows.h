// The row kernels, written once over a `Simd` policy that each instruction set's file defines before it includes this
// file inside its anonymous namespace: no inline function compiled for one instruction set may be merged by the linker
// with another's. For the same reason nothing of the standard library's templates is used here.
//
// Simd has: `lanes`, `Vector`, zero, load, load_bytes, store, broadcast, add, multiply, multiply_add, sum, odd (other lanes
// become 0), half, halves (that widens 16 of them), and decode_fp16, decode_int8, decode_int4, decode_nibbles that turn
// the 32 weights at an address into 32 / lanes vectors; those of decode_int8 and decode_int4 are multiplied with
// `int8_unit` and `int4_unit` afterwards, with their scale. For integer arithmetic: `Codes`, load_codes (32 of a
// QuantisedVector's values), and dot_int8, dot_nibbles: their products with 32 weights, as a vector that sums to the dot
// product.

// Loops over a few rows or vectors: only when they are unrolled early do their arrays become registers.
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 8")
#endif

constexpr uint32_t kVectors = kBlock / Simd::lanes;
constexpr uint32_t kHalves = 16;  // scales and minimums that are converted at once

struct Fp32 {
  static constexpr uint32_t halves = 0;  // per group: a scale, a minimum
  static constexpr size_t row_bytes(size_t d) { return 4 * d; }
  static void decode(const uint8_t* block, Simd::Vector* out) {
    UNROLL for (uint32_t v = 0; v < kVectors; ++v) out[v] = Simd::load_bytes(block + 4 * Simd::lanes * v);
  }
};

struct Fp16 {
  static constexpr uint32_t halves = 0;
  static constexpr size_t row_bytes(size_t d) { return 2 * d; }
  static void decode(const uint8_t* block, Simd::Vector* out) { Simd::decode_fp16(block, out); }
};

struct Int8 {
  static constexpr uint32_t halves = 1;
  static constexpr float above = 0;  // what a stored code is above its weight
  static constexpr float unit = Simd::int8_unit;
  static constexpr size_t row_bytes(size_t d) { return d; }
  static void decode(const uint8_t* block, Simd::Vector* out) { Simd::decode_int8(block, out); }
  static Simd::Vector dot(const uint8_t* block, Simd::Codes x) { return Simd::dot_int8(block, x); }
};

struct Int4 {
  static constexpr uint32_t halves = 1;
  static constexpr float above = 8;
  static constexpr float unit = Simd::int4_unit;
  static constexpr size_t row_bytes(size_t d) { return d / 2; }
  static void decode(const uint8_t* block, Simd::Vector* out) { Simd::decode_int4(block, out); }
  static Simd::Vector dot(const uint8_t* block, Simd::Codes x) { return Simd::dot_nibbles(block, x); }
};

struct Int4m {
  static constexpr uint32_t halves = 2;
  static constexpr float unit = 1;
  static constexpr size_t row_bytes(size_t d) { return d / 2; }
  static void decode(const uint8_t* block, Simd::Vector* out) { Simd::decode_nibbles(block, out); }
  static Simd::Vector dot(const uint8_t* block, Simd::Codes x) { return Simd::dot_nibbles(block, x); }
};

// How many weights have their scales converted at once.
template <typename Weights>
struct Stretch {
  uint32_t weights;
  uint32_t shift;
  explicit Stretch(const RowFormat& format) : weights(format.d), shift(0) {
    if constexpr (Weights::halves != 0) {
      shift = static_cast<uint32_t>(__builtin_ctz(format.group_size));
      weights = kHalves / Weights::halves << shift;
    }
  }
  uint32_t group(uint32_t at) const { return at >> shift; }
};

// The scales and minimums of a stretch, in fp32 and multiplied with a factor. Converted many at once, and read back by
// broadcasting loads: with a conversion for each group, its share of the instructions is a third.
template <typename Weights, size_t rows_at_once>
struct Scales {
  float values[rows_at_once][kHalves];

  void load(const RowFormat& format, const uint8_t* const* rows, uint32_t first, uint32_t groups, const float* factors) {
    if constexpr (Weights::halves != 0) {
      const size_t at = Weights::row_bytes(format.d) + 2 * size_t{first} * Weights::halves;
      for (size_t r = 0; r < rows_at_once; ++r) {
        const float factor = factors == nullptr ? Weights::unit : factors[r] * Weights::unit;
        if (groups * Weights::halves == kHalves) {
          Simd::halves(rows[r] + at, factor, values[r]);
        } else {
          // What follows a row's last scale may not be memory.
          for (uint32_t i = 0; i < groups * Weights::halves; ++i) {
            values[r][i] = factor * Simd::half(rows[r] + at + 2 * i);
          }
        }
      }
    }
  }

  Simd::Vector scale(size_t row, uint32_t group) const { return Simd::broadcast(values[row][group * Weights::halves]); }
  Simd::Vector minimum(size_t row, uint32_t group) const {
    return Simd::broadcast(values[row][group * Weights::halves + 1]);
  }
};

// Once per cache line of the rows ahead, as the same place of the current rows is reached.
template <typename Weights, size_t rows_at_once>
inline void fetch_ahead(bool wanted, const uint8_t* const* next, uint32_t at) {
  if (!wanted || Weights::row_bytes(at) % 64 != 0) return;
  UNROLL for (size_t r = 0; r < rows_at_once; ++r) {
    __builtin_prefetch(next[r] + Weights::row_bytes(at));
    if constexpr (Weights::row_bytes(kBlock) > 64) __builtin_prefetch(next[r] + Weights::row_bytes(at) + 64);
  }
}

template <typename Weights, size_t rows_at_once>
void fetch_scales_ahead(const RowFormat& format, const uint8_t* const* ahead, uint32_t first) {
  if (ahead == nullptr || Weights::halves == 0) return;
  UNROLL for (size_t r = 0; r < rows_at_once; ++r) {
    __builtin_prefetch(ahead[r] + Weights::row_bytes(format.d) + 2 * size_t{first} * Weights::halves);
  }
}

// How rows are multiplied with activations as they are. QuantisedProducts has the same interface.
template <typename Weights, size_t rows_at_once>
class PlainProducts {
 public:
  using Activations = const float*;

  struct Input {
    Simd::Vector values[kVectors];
    Simd::Vector sum;
  };

  static Input input(const float* x, uint32_t at) {
    Input input;
    UNROLL for (uint32_t v = 0; v < kVectors; ++v) input.values[v] = Simd::load(x + at + v * Simd::lanes);
    input.sum = input.values[0];
    if constexpr (Weights::halves == 2) {
      UNROLL for (uint32_t v = 1; v < kVectors; ++v) input.sum = Simd::add(input.sum, input.values[v]);
    }
    return input;
  }

  void load(const RowFormat& format, const uint8_t* const* rows, uint32_t first, uint32_t groups, const float*) {
    scales_.load(format, rows, first, groups, nullptr);
  }

  Simd::Vector add(size_t row, uint32_t group, const uint8_t* block, const Input& input, Simd::Vector total) const {
    Simd::Vector weights[kVectors];
    Weights::decode(block, weights);
    Simd::Vector product = Simd::multiply(weights[0], input.values[0]);
    UNROLL for (uint32_t v = 1; v < kVectors; ++v) product = Simd::multiply_add(weights[v], input.values[v], product);
    if constexpr (Weights::halves == 0) return Simd::add(total, product);
    total = Simd::multiply_add(scales_.scale(row, group), product, total);
    if constexpr (Weights::halves == 2) total = Simd::multiply_add(scales_.minimum(row, group), input.sum, total);
    return total;
  }

  float sum(size_t, Simd::Vector total) const { return Simd::sum(total); }

 private:
  Scales<Weights, rows_at_once> scales_;
};

template <template <typename, size_t> class Products, typename Weights, size_t rows_at_once>
void dots_of(const RowFormat& format, const uint8_t* const* rows,
             typename Products<Weights, rows_at_once>::Activations x, float* out, const uint8_t* const* ahead) {
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
      const auto input = products.input(x, at);
      const uint32_t group = stretch.group(at - begin);
      UNROLL for (size_t r = 0; r < rows_at_once; ++r) {
        total[r] = products.add(r, group, row[r] + Weights::row_bytes(at), input, total[r]);
      }
    }
  }
  UNROLL for (size_t r = 0; r < rows_at_once; ++r) out[r] = products.sum(r, total[r]);
}

template <typename Weights, size_t rows_at_once>
void accumulate_of(const RowFormat& format, const uint8_t* const* rows, const float* coefficients, float* y,
                   const uint8_t* const* ahead) {
  const uint8_t* row[rows_at_once];
  const uint8_t* next[rows_at_once];
  Simd::Vector factor[rows_at_once];
  UNROLL for (size_t r = 0; r < rows_at_once; ++r) {
    row[r] = rows[r];
    next[r] = ahead == nullptr ? rows[r] : ahead[r];
    factor[r] = Simd::broadcast(coefficients[r]);
  }
  Scales<Weights, rows_at_once> scales;
  const Stretch<Weights> stretch(format);
  for (uint32_t begin = 0; begin < format.d; begin += stretch.weights) {
    const uint32_t end = format.d - begin < stretch.weights ? format.d : begin + stretch.weights;
    fetch_scales_ahead<Weights, rows_at_once>(format, ahead, stretch.group(begin));
    scales.load(format, rows, stretch.group(begin), stretch.group(end - begin), coefficients);
    for (uint32_t at = begin; at < end; at += kBlock) {
      fetch_ahead<Weights, rows_at_once>(ahead != nullptr, next, at);
      Simd::Vector output[kVectors];
      UNROLL for (uint32_t v = 0; v < kVectors; ++v) output[v] = Simd::load(y + at + v * Simd::lanes);
      const uint32_t group = stretch.group(at - begin);
      if constexpr (Weights::halves == 2) {
        Simd::Vector minimum = scales.minimum(0, group);
        UNROLL for (size_t r = 1; r < rows_at_once; ++r) minimum = Simd::add(minimum, scales.minimum(r, group));
        UNROLL for (uint32_t v = 0; v < kVectors; ++v) output[v] = Simd::add(output[v], minimum);
      }
      UNROLL for (size_t r = 0; r < rows_at_once; ++r) {
        Simd::Vector weights[kVectors];
        Weights::decode(row[r] + Weights::row_bytes(at), weights);
        if constexpr (Weights::halves != 0) factor[r] = scales.scale(r, group);
        UNROLL for (uint32_t v = 0; v < kVectors; ++v) {
          output[v] = Simd::multiply_add(factor[r], weights[v], output[v]);
        }
      }
      UNROLL for (uint32_t v = 0; v < kVectors; ++v) Simd::store(y + at + v * Simd::lanes, output[v]);
    }
  }
}

template <template <typename, size_t> class Products, typename Weights, typename Activations>
void dots_by_count(const RowFormat& format, const uint8_t* const* rows, size_t count, const Activations& x, float* out,
                   const uint8_t* const* ahead) {
  if (count == kRowsAtOnce) return dots_of<Products, Weights, kRowsAtOnce>(format, rows, x, out, ahead);
  for (size_t r = 0; r < count; ++r) dots_of<Products, Weights, 1>(format, rows + r, x, out + r, nullptr);
}

template <typename Weights>
void accumulate_by_count(const RowFormat& format, const uint8_t* const* rows, size_t count, const float* coefficients,
                         float* y, const uint8_t* const* ahead) {
  if (count == kRowsAtOnce) return accumulate_of<Weights, kRowsAtOnce>(format, rows, coefficients, y, ahead);
  for (size_t r = 0; r < count; ++r) accumulate_of<Weights, 1>(format, rows + r, coefficients + r, y, nullptr);
}

void dots(const RowFormat& format, const uint8_t* const* rows, size_t count, const float* x, float* out,
          const uint8_t* const* ahead) {
  switch (format.dtype) {
    case HH_FLASH_FP32:
      return dots_by_count<PlainProducts, Fp32>(format, rows, count, x, out, ahead);
    case HH_FLASH_FP16:
      return dots_by_count<PlainProducts, Fp16>(format, rows, count, x, out, ahead);
    case HH_FLASH_INT8:
      return dots_by_count<PlainProducts, Int8>(format, rows, count, x, out, ahead);
    case HH_FLASH_INT4:
      return dots_by_count<PlainProducts, Int4>(format, rows, count, x, out, ahead);
    case HH_FLASH_INT4M:
      return dots_by_count<PlainProducts, Int4m>(format, rows, count, x, out, ahead);
  }
}

void accumulate(const RowFormat& format, const uint8_t* const* rows, size_t count, const float* coefficients,
                float* y, const uint8_t* const* ahead) {
  switch (format.dtype) {
    case HH_FLASH_FP32:
      return accumulate_by_count<Fp32>(format, rows, count, coefficients, y, ahead);
    case HH_FLASH_FP16:
      return accumulate_by_count<Fp16>(format, rows, count, coefficients, y, ahead);
    case HH_FLASH_INT8:
      return accumulate_by_count<Int8>(format, rows, count, coefficients, y, ahead);
    case HH_FLASH_INT4:
      return accumulate_by_count<Int4>(format, rows, count, coefficients, y, ahead);
    case HH_FLASH_INT4M:
      return accumulate_by_count<Int4m>(format, rows, count, coefficients, y, ahead);
  }
}
