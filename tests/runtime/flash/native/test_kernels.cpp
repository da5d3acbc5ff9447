// Every instruction set of this processor against the portable kernels.
#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "half.h"
#include "input.h"

using namespace handheld::flash;

namespace {

std::vector<const Kernels*> with_portable(std::vector<const Kernels*> kernels) {
  kernels.push_back(&portable_kernels());
  return kernels;
}

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

constexpr hh_flash_dtype kDtypes[] = {HH_FLASH_FP32, HH_FLASH_FP16, HH_FLASH_INT8, HH_FLASH_INT4, HH_FLASH_INT4M};

// Random weights, and scales (and minimums) between 2^-8 and 2^-7 with random mantissas.
std::vector<uint8_t> random_row(std::mt19937& random, size_t weights, size_t scales) {
  std::vector<uint8_t> row(weights + 2 * scales);
  for (size_t i = 0; i < weights; ++i) {
    row[i] = static_cast<uint8_t>(random());
    if (row[i] == 0x80) row[i] = 0x81;  // -128 is not an int8 weight
  }
  for (size_t i = 0; i < scales; ++i) {
    const uint16_t half = static_cast<uint16_t>(0x1c00 + random() % 0x400);
    std::memcpy(row.data() + weights + 2 * i, &half, 2);
  }
  return row;
}

std::vector<uint8_t> random_row(std::mt19937& random, const RowFormat& format) {
  if (format.dtype == HH_FLASH_FP16) return random_row(random, 0, format.d);
  if (format.grouped()) {
    return random_row(random, format.weight_bytes(), (format.part_bytes() - format.weight_bytes()) / 2);
  }
  std::vector<uint8_t> row(format.part_bytes());
  for (uint32_t i = 0; i < format.d; ++i) {
    const float value = std::ldexp(static_cast<float>(random() % 4096) - 2048, -18);
    std::memcpy(row.data() + 4 * i, &value, 4);
  }
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
    for (const hh_flash_dtype dtype : kDtypes) {
      for (const uint32_t d : {32u, 96u, 576u}) {
        for (const uint32_t group : {32u, 64u}) {
          if (d % group != 0) continue;
          RowFormat format{dtype, d, group};
          if (!format.grouped()) format.group_size = 0;
          std::vector<std::vector<uint8_t>> rows;
          for (size_t r = 0; r < kRowsAtOnce; ++r) rows.push_back(random_row(random, format));
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

TEST(integer_products_are_those_of_the_weights_with_the_rounded_vector) {
  std::mt19937 random(7);
  std::uniform_real_distribution<float> value(-1, 1);
  for (const Kernels* kernels : with_portable(all_kernels())) {
    for (const hh_flash_dtype dtype : {HH_FLASH_INT8, HH_FLASH_INT4, HH_FLASH_INT4M}) {
      for (const uint32_t d : {32u, 96u, 576u, 2048u}) {
        for (const uint32_t group : {32u, 64u}) {
          if (d % group != 0) continue;
          const RowFormat format{dtype, d, group};
          std::vector<float> x(d);
          for (float& v : x) v = value(random);
          Rounding rounding(d);
          const Input input = rounding.input(*kernels, x.data(), format, true);
          const QuantisedVector& rounded = *input.rounded;
          std::vector<std::vector<uint8_t>> rows;
          const uint8_t* pointers[kRowsAtOnce];
          double expected[kRowsAtOnce] = {};
          for (size_t r = 0; r < kRowsAtOnce; ++r) {
            rows.push_back(random_row(random, format));
            // The least codes: what could overflow.
            if (r == 0) std::memset(rows[0].data(), dtype == HH_FLASH_INT8 ? 0x81 : 0xff, format.weight_bytes());
          }
          for (size_t r = 0; r < kRowsAtOnce; ++r) {
            pointers[r] = rows[r].data();
            const float one = 1;
            std::vector<float> weights(d, 0.0f);
            portable_kernels().accumulate(format, &pointers[r], 1, &one, weights.data(), nullptr);
            for (uint32_t i = 0; i < d; ++i) {
              expected[r] += double{weights[i]} * rounded.values[i] * double{rounded.scales[i / group]};
            }
          }
          for (size_t count = 1; count <= kRowsAtOnce; ++count) {
            float found[kRowsAtOnce];
            dots(*kernels, format, pointers, count, input, found, pointers);
            for (size_t r = 0; r < count; ++r) {
              CHECK(close(found[r], static_cast<float>(expected[r]), static_cast<float>(d)));
            }
          }
        }
      }
    }
  }
}

TEST(integer_sums_of_columns_are_within_half_a_step_of_each) {
  std::mt19937 random(10);
  std::normal_distribution<float> value(0, 1);
  for (const hh_flash_dtype dtype : {HH_FLASH_INT8, HH_FLASH_INT4, HH_FLASH_INT4M}) {
    const bool bytes = dtype == HH_FLASH_INT8;
    for (const uint32_t d : {32u, 96u, 576u, 2048u}) {
      for (const uint32_t group : {32u, 64u}) {
        if (d % group != 0) continue;
        const RowFormat format{dtype, d, group};
        const uint32_t halves = dtype == HH_FLASH_INT4M ? 2 : 1;
        std::vector<std::vector<uint8_t>> rows;
        std::vector<const uint8_t*> pointers;
        for (size_t r = 0; r < kColumnsAtOnce; ++r) {
          rows.push_back(random_row(random, format));
          pointers.push_back(rows[r].data());
        }
        for (const bool alike : {false, true}) {
          std::vector<float> coefficients(kColumnsAtOnce);
          for (float& c : coefficients) c = alike ? -3.0f : value(random);
          // The largest weights and codes, all of one sign: what could overflow.
          for (size_t r = 0; alike && r < kColumnsAtOnce; ++r) {
            std::memset(rows[r].data(), bytes ? 0x80 : 0xff, format.weight_bytes());
            for (uint32_t g = 0; g < d / group; ++g) {
              const uint16_t half = 0x1c00;
              std::memcpy(rows[r].data() + format.weight_bytes() + 2 * halves * g, &half, 2);
            }
          }
          for (const size_t count : {1u, 2u, 5u, 16u, 31u, 32u}) {
            std::vector<float> expected(d, 0.5f);
            for (size_t r = 0; r < count; ++r) {
              portable_kernels().accumulate(format, &pointers[r], 1, &coefficients[r], expected.data(), nullptr);
            }
            std::vector<float> portable(d, 0.5f);
            portable_kernels().quantised_accumulate(format, pointers.data(), count, coefficients.data(),
                                                    portable.data(), nullptr);
            double error = 0;
            for (uint32_t i = 0; i < d; ++i) {
              float sum = 0;
              float largest = 0;
              for (size_t r = 0; r < count; ++r) {
                const float scale = load_half(rows[r].data() + format.weight_bytes() + 2 * halves * (i / group));
                sum += std::fabs(coefficients[r] * scale);
                largest = std::max(largest, std::fabs(coefficients[r] * scale));
              }
              const float step = bytes ? std::max(largest / 2047, sum / 65519) : std::max(largest / 127, sum / 2168);
              const float off = std::fabs(portable[i] - expected[i]);
              const float from_middle = bytes ? 128 : 7.5f;
              const float rounding = 1e-6f * from_middle * sum;
              CHECK(off <= 0.501f * step * from_middle * static_cast<float>(count) + rounding + 1e-5f);
              error += off;
            }
            CHECK(alike || count == 1 || error > 1e-5);
            for (const Kernels* kernels : all_kernels()) {
              std::vector<float> found(d, 0.5f);
              kernels->quantised_accumulate(format, pointers.data(), count, coefficients.data(), found.data(),
                                            pointers.data());
              for (uint32_t i = 0; i < d; ++i) CHECK(close(found[i], portable[i], bytes ? 10 : 1));
            }
          }
        }
      }
    }
  }
}

TEST(what_is_not_finite_shows_in_integer_sums_of_columns) {
  for (const hh_flash_dtype dtype : {HH_FLASH_INT8, HH_FLASH_INT4M}) {
    const RowFormat format{dtype, 64, 32};
    std::vector<uint8_t> row(format.part_bytes());
    const uint16_t one = 0x3c00;
    for (size_t at = format.weight_bytes(); at < row.size(); at += 2) std::memcpy(row.data() + at, &one, 2);
    const uint8_t* rows[] = {row.data(), row.data(), row.data()};
    for (const Kernels* kernels : with_portable(all_kernels())) {
      for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        const float coefficients[] = {1, bad, 1};
        std::vector<float> y(64);
        kernels->quantised_accumulate(format, rows, 3, coefficients, y.data(), nullptr);
        for (const float v : y) CHECK(!std::isfinite(v));
      }
      // So small that its inverse is not a number.
      const float tiny[] = {1e-44f, 1e-44f, 1e-44f};
      std::vector<float> y(64);
      kernels->quantised_accumulate(format, rows, 3, tiny, y.data(), nullptr);
      for (const float v : y) CHECK(std::fabs(v) < 1e-40f);
    }
  }
}

TEST(vectors_are_rounded_to_the_nearest_codes) {
  std::mt19937 random(8);
  std::normal_distribution<float> value(0, 3);
  constexpr uint32_t kSize = 256;
  for (const Kernels* kernels : with_portable(all_kernels())) {
    for (const uint32_t group : {32u, 64u, 256u}) {
      std::vector<float> x(kSize);
      for (float& v : x) v = value(random);
      std::fill(x.begin(), x.begin() + group, 0.0f);
      if (group < kSize) x[group + 5] = -40;
      Rounding rounding(kSize);
      const QuantisedVector& rounded = rounding.round(*kernels, x.data(), kSize, group);
      for (uint32_t g = 0; g < kSize / group; ++g) {
        float largest = 0;
        float total = 0;
        for (uint32_t i = g * group; i < (g + 1) * group; ++i) {
          largest = std::max(largest, std::fabs(x[i]));
          const float stands_for = static_cast<float>(rounded.values[i]) * rounded.scales[g];
          total += stands_for;
          CHECK(std::fabs(stands_for - x[i]) <= 0.5001f * rounded.scales[g]);
        }
        CHECK(rounded.scales[g] == largest / 127);
        CHECK(close(rounded.offsets[g], -total, 10 * largest));
        CHECK(rounded.pairs[2 * g] == rounded.scales[g] && rounded.pairs[2 * g + 1] == -rounded.offsets[g]);
      }
    }
  }
}

TEST(what_is_not_finite_shows_in_integer_products) {
  const RowFormat format{HH_FLASH_INT4M, 64, 32};
  std::vector<uint8_t> row(format.part_bytes());
  const uint8_t* rows[] = {row.data()};
  for (const Kernels* kernels : with_portable(all_kernels())) {
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      std::vector<float> x(64, 1.0f);
      x[40] = bad;
      Rounding rounding(64);
      float out = 0;
      dots(*kernels, format, rows, 1, rounding.input(*kernels, x.data(), format, true), &out, nullptr);
      CHECK(!std::isfinite(out));
      // So small that its inverse is not a number.
      x.assign(64, 1e-44f);
      dots(*kernels, format, rows, 1, rounding.input(*kernels, x.data(), format, true), &out, nullptr);
      CHECK(out == 0);
    }
  }
}

TEST(a_row_of_int4_with_minimum_is_nibbles_times_scale_plus_minimum) {
  const RowFormat format{HH_FLASH_INT4M, 64, 32};
  std::vector<uint8_t> row(format.part_bytes());
  CHECK(row.size() == 32 + 2 * 4);
  row[3] = 0x52;        // weight 3 is 2, weight 19 is 5
  row[16 + 3] = 0xf0;   // weight 35 is 0, weight 51 is 15
  const uint16_t scales[] = {0x4000, 0xbc00, 0x3800, 0x3c00};  // 2 q - 1, then q / 2 + 1
  std::memcpy(row.data() + 32, scales, sizeof scales);
  const uint8_t* rows[] = {row.data()};
  const float one = 1;
  std::vector<float> weights(64, 0.0f);
  std::vector<float> expected(64, -1.0f);
  std::fill(expected.begin() + 32, expected.end(), 1.0f);
  expected[3] = 3;
  expected[19] = 9;
  expected[51] = 8.5f;
  portable_kernels().accumulate(format, rows, 1, &one, weights.data(), nullptr);
  CHECK(weights == expected);
}

TEST(a_matrix_is_multiplied_in_any_ranges) {
  std::mt19937 random(9);
  const Kernels& kernels = find_kernels(HH_FLASH_KERNELS_AUTO);
  for (const hh_flash_dtype dtype : kDtypes) {
    RowFormat format{dtype, 96, 32};
    if (!format.grouped()) format.group_size = 0;
    std::vector<uint8_t> matrix;
    for (int i = 0; i < 11; ++i) {
      const std::vector<uint8_t> row = random_row(random, format);
      matrix.insert(matrix.end(), row.begin(), row.end());
    }
    const std::vector<float> x(96, 0.25f);
    std::vector<float> expected(11);
    for (size_t i = 0; i < 11; ++i) {
      const uint8_t* row = matrix.data() + i * format.part_bytes();
      portable_kernels().dots(format, &row, 1, x.data(), &expected[i], nullptr);
    }
    for (size_t cut = 0; cut <= 11; ++cut) {
      std::vector<float> out(11);
      multiply_rows(kernels, format, matrix.data(), 0, cut, {x.data(), nullptr}, out.data());
      multiply_rows(kernels, format, matrix.data(), cut, 11, {x.data(), nullptr}, out.data());
      for (size_t i = 0; i < 11; ++i) CHECK(close(out[i], expected[i], 100));
    }
  }
}

TEST(two_bit_rows_agree_with_the_portable_kernels) {
  std::mt19937 random(6);
  for (const Kernels* kernels : all_kernels()) {
    for (const uint32_t d : {32u, 96u, 576u, 4096u, 16384u, 20480u}) {
      for (const uint32_t group : {32u, 64u, 192u, 576u, 4096u}) {
        if (d % group != 0) continue;
        constexpr size_t kRows = 7;
        std::vector<std::vector<uint8_t>> rows;
        const uint8_t* pointers[kRows];
        for (size_t i = 0; i < kRows; ++i) {
          rows.push_back(random_row(random, d / 4, d / group));
          pointers[i] = rows[i].data();
        }
        std::vector<int8_t> values(d);
        std::vector<float> scales(d / group, 0.25f);
        std::vector<float> offsets(d / group, 0.0f);
        for (uint32_t i = 0; i < d; ++i) {
          values[i] = static_cast<int8_t>(static_cast<int>(random() % 255) - 127);
          offsets[i / group] -= values[i] * scales[i / group];
        }
        const QuantisedVector x{values.data(), scales.data(), offsets.data(), nullptr, d, group};
        float expected[kRows];
        float found[kRows];
        portable_kernels().ternary_dots(pointers, kRows, x, expected);
        kernels->ternary_dots(pointers, kRows, x, found);
        for (size_t i = 0; i < kRows; ++i) CHECK(close(found[i], expected[i], 100));
      }
    }
  }
}

TEST(a_two_bit_code_is_one_more_than_its_weight) {
  // Weights 0, 8, 16 and 24 of the first block are -1, 0, 1 and 2 times the scale; all others are -1 times it.
  std::vector<uint8_t> row(16 + 2);
  row[0] = 0xe4;
  const uint16_t half = 0xb800;  // -0.5
  std::memcpy(row.data() + 16, &half, 2);
  std::vector<int8_t> values(64, 0);
  values[0] = 1;
  values[8] = 10;
  values[16] = 100;
  values[24] = 127;
  values[63] = -100;
  float scale = 2;
  float offset = -scale * (1 + 10 + 100 + 127 - 100);
  const QuantisedVector x{values.data(), &scale, &offset, nullptr, 64, 64};
  float out = 0;
  const uint8_t* rows[] = {row.data()};
  portable_kernels().ternary_dots(rows, 1, x, &out);
  CHECK(out == -0.5f * 2 * (-1 + 0 + 100 + 2 * 127 + 100));
}
