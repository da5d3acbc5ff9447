// Vectors that rows are multiplied with, rounded to 8 bits where that is wanted and the rows are integers themselves.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace handheld::flash {

struct Input {
  const float* values = nullptr;             // [d]
  const QuantisedVector* rounded = nullptr;  // the same; null: arithmetic is in fp32
};

// Room for one rounded vector of up to d values.
class Rounding {
 public:
  explicit Rounding(uint32_t d);
  static uint64_t bytes(uint32_t d);

  // Valid until the next call.
  const QuantisedVector& round(const Kernels& kernels, const float* x, uint32_t d, uint32_t group_size);
  // The input for rows of `format`, whose d is that of x.
  Input input(const Kernels& kernels, const float* x, const RowFormat& format, bool wanted);

 private:
  std::vector<int8_t> values_;
  std::vector<float> scales_;
  std::vector<float> offsets_;
  std::vector<float> pairs_;
  QuantisedVector rounded_{};
};

// out[r] = rows[r] . x, as Kernels::dots.
void dots(const Kernels& kernels, const RowFormat& format, const uint8_t* const* rows, size_t count, const Input& x,
          float* out, const uint8_t* const* ahead);

// Whether Kernels::quantised_accumulate is for such rows.
bool sums_columns(const RowFormat& format);

// y += coefficients[r] * rows[r], of any number of rows. Where `rounded` is set, rows with scales are multiplied in
// integers, kColumnsAtOnce of them with one step. `ahead` as Kernels::dots.
void accumulate(const Kernels& kernels, const RowFormat& format, const uint8_t* const* rows, size_t count,
                const float* coefficients, bool rounded, float* y, const uint8_t* const* ahead);

// out[i] = row i . x for i of first .. last: the part of a matrix-vector product that one thread does. `matrix` holds
// rows of `format`, one after the other without gaps. Allocates nothing; any ranges may run at the same time.
void multiply_rows(const Kernels& kernels, const RowFormat& format, const uint8_t* matrix, size_t first, size_t last,
                   const Input& x, float* out);

}  // namespace handheld::flash
