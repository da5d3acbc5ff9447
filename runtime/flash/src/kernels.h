// Rows of weights times a vector: one table of functions per instruction set, chosen when a session opens.
//
// Arithmetic is fp32 on the activations as they are, or in integers on activations rounded to 8 bits; instruction sets
// differ in the order of additions only. Two-bit codes are one more than their weight, which is -1 to 2 times the scale;
// byte j of a block of 32 holds weights j, j + 8, j + 16 and j + 24 from the low bits up.
#pragma once

#include <cstddef>
#include <cstdint>

#include "row_format.h"

namespace handheld::flash {

constexpr size_t kRowsAtOnce = 4;      // rows per call of `dots` and `accumulate`, at most
constexpr size_t kColumnsAtOnce = 32;  // rows per call of `quantised_accumulate`, at most
constexpr uint32_t kLeadBytes = 256;   // of each of those rows, with its first scales: what that call begins with

// So many rows before it is multiplied one is fetched: far enough for it to arrive, and not so far that it has left the
// nearest cache by then.
constexpr size_t kRowsAhead = 8;

// An activation vector in int8 with one scale per group of as many values as a scale of the rows has.
struct QuantisedVector {
  int8_t* values;   // [d] -127 .. 127
  float* scales;    // [d / group_size]
  float* offsets;   // [d / group_size] minus the sum of each group's values times its scale: for codes above their weight
  float* pairs;     // [2 d / group_size] of each group its scale and minus its offset, as int4m rows have theirs
  uint32_t d;
  uint32_t group_size;
};

struct Kernels {
  hh_flash_kernels id;
  // out[r] = rows[r] . x. `ahead`: null, or as many rows that are needed soon, which are fetched into the cache
  // meanwhile: decoding leaves the processor too little room to run ahead on its own.
  void (*dots)(const RowFormat& format, const uint8_t* const* rows, size_t count, const float* x, float* out,
               const uint8_t* const* ahead);
  // y += coefficients[r] * rows[r]
  void (*accumulate)(const RowFormat& format, const uint8_t* const* rows, size_t count, const float* coefficients,
                     float* y, const uint8_t* const* ahead);
  // Rounds x[d] into `to`, whose d and group_size are set. What is not finite makes its group's scale so.
  void (*quantise)(const float* x, const QuantisedVector& to);
  // `dots` in integers, of int8, int4 and int4m rows with the group size of x.
  void (*quantised_dots)(const RowFormat& format, const uint8_t* const* rows, size_t count, const QuantisedVector& x,
                         float* out, const uint8_t* const* ahead);
  // `accumulate` in integers, of int8, int4 and int4m rows: a coefficient times a scale is rounded to 8 bits, of int8
  // rows to 12, with one step per group for all rows of a call. It goes through all rows at once and fetches them as it
  // goes, but for their lead, and then the lead of `ahead`.
  void (*quantised_accumulate)(const RowFormat& format, const uint8_t* const* rows, size_t count,
                               const float* coefficients, float* y, const uint8_t* const* ahead);
  // out[i] = rows[i] . x, of any number of rows. A row is codes[d / 4], then fp16 scales[d / group_size].
  void (*ternary_dots)(const uint8_t* const* rows, size_t count, const QuantisedVector& x, float* out);
};

// Throws Error(HH_FLASH_UNSUPPORTED) for what this processor or build does not have.
const Kernels& find_kernels(hh_flash_kernels wanted);

// Null where the build is for another processor.
const Kernels& portable_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* neon_kernels();

}  // namespace handheld::flash
