// The row kernels, written once over a `Simd` policy that each instruction set's file defines before it includes this
// file inside its anonymous namespace: no inline function compiled for one instruction set may be merged by the linker
// with another's. For the same reason nothing of the standard library's templates is used here.
//
// Simd has: `lanes`, `Vector`, zero, load, load_bytes, store, broadcast, add, multiply, multiply_add, sum,
// broadcast_half, and decode_fp16, decode_int8, decode_int4, decode_nibbles that turn the 32 weights at an address into
// 32 / lanes vectors.

constexpr uint32_t kVectors = kBlock / Simd::lanes;

struct Fp32 {
  static constexpr bool scaled = false;
  static constexpr bool has_minimum = false;
  static constexpr size_t row_bytes(size_t d) { return 4 * d; }
  static void decode(const uint8_t* block, Simd::Vector* out) {
    for (uint32_t v = 0; v < kVectors; ++v) out[v] = Simd::load_bytes(block + 4 * Simd::lanes * v);
  }
};

struct Fp16 {
  static constexpr bool scaled = false;
  static constexpr bool has_minimum = false;
  static constexpr size_t row_bytes(size_t d) { return 2 * d; }
  static void decode(const uint8_t* block, Simd::Vector* out) { Simd::decode_fp16(block, out); }
};

struct Int8 {
  static constexpr bool scaled = true;
  static constexpr bool has_minimum = false;
  static constexpr size_t row_bytes(size_t d) { return d; }
  static void decode(const uint8_t* block, Simd::Vector* out) { Simd::decode_int8(block, out); }
};

struct Int4 {
  static constexpr bool scaled = true;
  static constexpr bool has_minimum = false;
  static constexpr size_t row_bytes(size_t d) { return d / 2; }
  static void decode(const uint8_t* block, Simd::Vector* out) { Simd::decode_int4(block, out); }
};

struct Int4m {
  static constexpr bool scaled = true;
  static constexpr bool has_minimum = true;
  static constexpr size_t row_bytes(size_t d) { return d / 2; }
  static void decode(const uint8_t* block, Simd::Vector* out) { Simd::decode_nibbles(block, out); }
};

// Once per cache line of the rows ahead, as the same place of the current rows is reached.
template <typename Weights, size_t rows_at_once>
void fetch_ahead(const uint8_t* const* ahead, uint32_t at) {
  if (ahead == nullptr || Weights::row_bytes(at) % 64 != 0) return;
  for (size_t r = 0; r < rows_at_once; ++r) {
    __builtin_prefetch(ahead[r] + Weights::row_bytes(at));
    if constexpr (Weights::row_bytes(kBlock) > 64) __builtin_prefetch(ahead[r] + Weights::row_bytes(at) + 64);
  }
}

// Where a group's scale lies; its minimum follows.
template <typename Weights>
const uint8_t* scale_at(const RowFormat& format, const uint8_t* row, uint32_t at) {
  constexpr size_t group_bytes = Weights::has_minimum ? 4 : 2;
  return row + Weights::row_bytes(format.d) + group_bytes * (at / format.group_size);
}

template <typename Weights, size_t rows_at_once>
void dots_of(const RowFormat& format, const uint8_t* const* rows, const float* x, float* out,
             const uint8_t* const* ahead) {
  Simd::Vector total[rows_at_once];
  for (size_t r = 0; r < rows_at_once; ++r) total[r] = Simd::zero();
  for (uint32_t at = 0; at < format.d; at += kBlock) {
    fetch_ahead<Weights, rows_at_once>(ahead, at);
    Simd::Vector input[kVectors];
    for (uint32_t v = 0; v < kVectors; ++v) input[v] = Simd::load(x + at + v * Simd::lanes);
    Simd::Vector input_sum = input[0];
    if constexpr (Weights::has_minimum) {
      for (uint32_t v = 1; v < kVectors; ++v) input_sum = Simd::add(input_sum, input[v]);
    }
    for (size_t r = 0; r < rows_at_once; ++r) {
      Simd::Vector weights[kVectors];
      Weights::decode(rows[r] + Weights::row_bytes(at), weights);
      Simd::Vector block = Simd::multiply(weights[0], input[0]);
      for (uint32_t v = 1; v < kVectors; ++v) block = Simd::multiply_add(weights[v], input[v], block);
      if constexpr (Weights::scaled) {
        const uint8_t* scale = scale_at<Weights>(format, rows[r], at);
        total[r] = Simd::multiply_add(Simd::broadcast_half(scale), block, total[r]);
        if constexpr (Weights::has_minimum) {
          total[r] = Simd::multiply_add(Simd::broadcast_half(scale + 2), input_sum, total[r]);
        }
      } else {
        total[r] = Simd::add(total[r], block);
      }
    }
  }
  for (size_t r = 0; r < rows_at_once; ++r) out[r] = Simd::sum(total[r]);
}

template <typename Weights, size_t rows_at_once>
void accumulate_of(const RowFormat& format, const uint8_t* const* rows, const float* coefficients, float* y,
                   const uint8_t* const* ahead) {
  Simd::Vector factor[rows_at_once];
  for (size_t r = 0; r < rows_at_once; ++r) factor[r] = Simd::broadcast(coefficients[r]);
  for (uint32_t at = 0; at < format.d; at += kBlock) {
    fetch_ahead<Weights, rows_at_once>(ahead, at);
    Simd::Vector output[kVectors];
    for (uint32_t v = 0; v < kVectors; ++v) output[v] = Simd::load(y + at + v * Simd::lanes);
    for (size_t r = 0; r < rows_at_once; ++r) {
      Simd::Vector weights[kVectors];
      Weights::decode(rows[r] + Weights::row_bytes(at), weights);
      Simd::Vector scaled = factor[r];
      if constexpr (Weights::scaled) {
        const uint8_t* scale = scale_at<Weights>(format, rows[r], at);
        scaled = Simd::multiply(scaled, Simd::broadcast_half(scale));
        if constexpr (Weights::has_minimum) {
          const Simd::Vector minimum = Simd::multiply(factor[r], Simd::broadcast_half(scale + 2));
          for (uint32_t v = 0; v < kVectors; ++v) output[v] = Simd::add(output[v], minimum);
        }
      }
      for (uint32_t v = 0; v < kVectors; ++v) output[v] = Simd::multiply_add(scaled, weights[v], output[v]);
    }
    for (uint32_t v = 0; v < kVectors; ++v) Simd::store(y + at + v * Simd::lanes, output[v]);
  }
}

template <typename Weights>
void dots_by_count(const RowFormat& format, const uint8_t* const* rows, size_t count, const float* x, float* out,
             const uint8_t* const* ahead) {
  if (count == kRowsAtOnce) return dots_of<Weights, kRowsAtOnce>(format, rows, x, out, ahead);
  for (size_t r = 0; r < count; ++r) dots_of<Weights, 1>(format, rows + r, x, out + r, nullptr);
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
      return dots_by_count<Fp32>(format, rows, count, x, out, ahead);
    case HH_FLASH_FP16:
      return dots_by_count<Fp16>(format, rows, count, x, out, ahead);
    case HH_FLASH_INT8:
      return dots_by_count<Int8>(format, rows, count, x, out, ahead);
    case HH_FLASH_INT4:
      return dots_by_count<Int4>(format, rows, count, x, out, ahead);
    case HH_FLASH_INT4M:
      return dots_by_count<Int4m>(format, rows, count, x, out, ahead);
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
