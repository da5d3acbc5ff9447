// Every instruction set of this processor against the portable kernels.
#include "kernels.h"

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "half.h"

using namespace handheld::flash;

namespace {

std::vector<const Kernels*> all_kernels() {
  std::vector<const Kernels*> found;
  for (const auto id : {HH_FLASH_KERNELS_AVX2, HH_FLASH_KERNELS_AVX512, HH_FLASH_KERNELS_NEON}) {
    try {
      found.push_back(&find_kernels(id));
    } catch (const Error& error) {
      CHECK(error.status() == HH_FLASH_UNSUPPORTED);
    }
  }
  return found;
}

// Random weights, and scales between 2^-8 and 2^-7 with random mantissas.
std::vector<uint8_t> random_row(std::mt19937& random, size_t weights, size_t scales) {
  std::vector<uint8_t> row(weights + 2 * scales);
  for (size_t i = 0; i < weights; ++i) row[i] = static_cast<uint8_t>(random());
  for (size_t i = 0; i < scales; ++i) {
    const uint16_t half = static_cast<uint16_t>(0x1c00 + random() % 0x400);
    std::memcpy(row.data() + weights + 2 * i, &half, 2);
  }
  return row;
}

std::vector<uint8_t> random_half_row(std::mt19937& random, uint32_t d) {
  std::vector<uint8_t> row = random_row(random, 0, d);
  return row;
}

bool close(float a, float b, float magnitude) { return std::fabs(a - b) <= 1e-5f * magnitude; }

}  // namespace

TEST(halves_are_converted_exactly) {
  CHECK(half_to_float(0x3c00) == 1.0f);
  CHECK(half_to_float(0xc000) == -2.0f);
  CHECK(half_to_float(0x0001) == std::ldexp(1.0f, -24));
  CHECK(half_to_float(0x03ff) == std::ldexp(1023.0f, -24));
  CHECK(half_to_float(0x7bff) == 65504.0f);
  CHECK(std::isinf(half_to_float(0x7c00)) && half_to_float(0xfc00) < 0);
  CHECK(std::isnan(half_to_float(0x7e00)));
}

TEST(instruction_sets_agree_with_the_portable_kernels) {
  std::mt19937 random(5);
  std::uniform_real_distribution<float> value(-1, 1);
  const Kernels& portable = portable_kernels();
  for (const Kernels* kernels : all_kernels()) {
    for (const hh_flash_dtype dtype : {HH_FLASH_FP16, HH_FLASH_INT8, HH_FLASH_INT4}) {
      for (const uint32_t d : {32u, 96u, 576u}) {
        for (const uint32_t group : {32u, 64u}) {
          if (d % group != 0) continue;
          const RowFormat format{dtype, d, dtype == HH_FLASH_FP16 ? 0 : group};
          std::vector<std::vector<uint8_t>> rows;
          for (size_t r = 0; r < kRowsAtOnce; ++r) {
            rows.push_back(dtype == HH_FLASH_FP16 ? random_half_row(random, d)
                                                  : random_row(random, dtype == HH_FLASH_INT8 ? d : d / 2, d / group));
          }
          std::vector<float> x(d);
          for (float& v : x) v = value(random);
          const uint8_t* pointers[kRowsAtOnce];
          for (size_t r = 0; r < kRowsAtOnce; ++r) pointers[r] = rows[r].data();
          for (size_t count = 1; count <= kRowsAtOnce; ++count) {
            float expected[kRowsAtOnce];
            float found[kRowsAtOnce];
            portable.dots(format, pointers, count, x.data(), expected, nullptr);
            kernels->dots(format, pointers, count, x.data(), found, pointers);
            for (size_t r = 0; r < count; ++r) CHECK(close(found[r], expected[r], static_cast<float>(d)));
            std::vector<float> y1(d, 0.5f);
            std::vector<float> y2(d, 0.5f);
            portable.accumulate(format, pointers, count, x.data(), y1.data(), nullptr);
            kernels->accumulate(format, pointers, count, x.data(), y2.data(), pointers);
            for (size_t i = 0; i < d; ++i) CHECK(close(y1[i], y2[i], 8));
          }
        }
      }
    }
  }
}

TEST(ternary_rows_agree_with_the_portable_kernels) {
  std::mt19937 random(6);
  for (const Kernels* kernels : all_kernels()) {
    for (const uint32_t group : {32u, 64u, 576u}) {
      const uint32_t d = 576;
      std::vector<uint8_t> row = random_row(random, d / 4, d / group);
      // Code 3 does not exist.
      for (uint32_t i = 0; i < d / 4; ++i) row[i] &= static_cast<uint8_t>(~(row[i] >> 1 & 0x55));
      std::vector<int8_t> values(d);
      std::vector<float> scales(d / group, 0.25f);
      std::vector<int32_t> sums(d / group, 0);
      for (uint32_t i = 0; i < d; ++i) {
        values[i] = static_cast<int8_t>(static_cast<int>(random() % 255) - 127);
        sums[i / group] += values[i];
      }
      const QuantisedVector x{values.data(), scales.data(), sums.data(), d, group};
      CHECK(close(kernels->ternary_dot(row.data(), x), portable_kernels().ternary_dot(row.data(), x), 100));
    }
  }
}
