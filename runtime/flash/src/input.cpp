#include "input.h"

#include <algorithm>

namespace handheld::flash {

Rounding::Rounding(uint32_t d) : values_(d), scales_(d / kBlock), offsets_(d / kBlock), pairs_(2 * (d / kBlock)) {}

uint64_t Rounding::bytes(uint32_t d) { return uint64_t{d} + 4 * sizeof(float) * uint64_t{d / kBlock}; }

const QuantisedVector& Rounding::round(const Kernels& kernels, const float* x, uint32_t d, uint32_t group_size) {
  rounded_ = {values_.data(), scales_.data(), offsets_.data(), pairs_.data(), d, group_size};
  kernels.quantise(x, rounded_);
  return rounded_;
}

Input Rounding::input(const Kernels& kernels, const float* x, const RowFormat& format, bool wanted) {
  if (!wanted || !format.grouped()) return {x, nullptr};
  return {x, &round(kernels, x, format.d, format.group_size)};
}

void dots(const Kernels& kernels, const RowFormat& format, const uint8_t* const* rows, size_t count, const Input& x,
          float* out, const uint8_t* const* ahead) {
  // A pack may have matrices of other groups than those that x was rounded for.
  const bool fits = x.rounded != nullptr && format.grouped() && format.group_size == x.rounded->group_size;
  if (fits) return kernels.quantised_dots(format, rows, count, *x.rounded, out, ahead);
  kernels.dots(format, rows, count, x.values, out, ahead);
}

bool sums_columns(const RowFormat& format) { return format.grouped(); }

void accumulate(const Kernels& kernels, const RowFormat& format, const uint8_t* const* rows, size_t count,
                const float* coefficients, bool rounded, float* y, const uint8_t* const* ahead) {
  const bool in_integers = rounded && sums_columns(format);
  const size_t at_once = in_integers ? kColumnsAtOnce : kRowsAtOnce;
  const auto run = in_integers ? kernels.quantised_accumulate : kernels.accumulate;
  for (size_t i = 0; i < count; i += at_once) {
    const size_t some = std::min(at_once, count - i);
    run(format, rows + i, some, coefficients + i, y, ahead == nullptr ? nullptr : ahead + i);
  }
}

void multiply_rows(const Kernels& kernels, const RowFormat& format, const uint8_t* matrix, size_t first, size_t last,
                   const Input& x, float* out) {
  const size_t stride = format.part_bytes();
  for (size_t i = first; i < last; i += kRowsAtOnce) {
    const size_t some = std::min(kRowsAtOnce, last - i);
    const uint8_t* rows[kRowsAtOnce];
    const uint8_t* ahead[kRowsAtOnce];
    for (size_t r = 0; r < some; ++r) rows[r] = matrix + (i + r) * stride;
    for (size_t r = 0; r < kRowsAtOnce; ++r) ahead[r] = matrix + std::min(i + kRowsAhead + r, last - 1) * stride;
    dots(kernels, format, rows, some, x, out + i, ahead);
  }
}

}  // namespace handheld::flash
