// How a row of weights lies in memory, in bundles and in a model's matrices alike. docs/flash.md calls it a part.
//
// d weights, then what belongs to each group of them: nothing (fp32, fp16), an fp16 scale (int8, int4), or an fp16 scale
// and an fp16 minimum (int4m). int8 weights are signed bytes but -128, times the scale; int4 weights are nibbles minus 8,
// times the scale; int4m weights are nibbles times the scale, plus the minimum. Byte j of a block of 32 nibbles holds weights
// j (low) and j + 16 (high). Rows need no alignment.
#pragma once

#include <cstddef>
#include <cstdint>

#include "handheld/flash.h"

namespace handheld::flash {

constexpr uint32_t kBlock = 32;  // weights that kernels treat at once; d is a multiple of it

struct RowFormat {
  hh_flash_dtype dtype;
  uint32_t d;
  uint32_t group_size;  // a power of two of 32 or more that divides d; 0 where there are no scales

  bool grouped() const;
  uint32_t weight_bytes() const;  // without scales and minimums
  uint32_t part_bytes() const;    // the whole row
};

}  // namespace handheld::flash
