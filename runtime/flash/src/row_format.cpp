#include "row_format.h"

namespace handheld::flash {

bool RowFormat::grouped() const { return dtype != HH_FLASH_FP32 && dtype != HH_FLASH_FP16; }

uint32_t RowFormat::weight_bytes() const {
  switch (dtype) {
    case HH_FLASH_FP32:
      return 4 * d;
    case HH_FLASH_FP16:
      return 2 * d;
    case HH_FLASH_INT8:
      return d;
    case HH_FLASH_INT4:
    case HH_FLASH_INT4M:
      return d / 2;
  }
  return 0;
}

uint32_t RowFormat::part_bytes() const {
  if (!grouped()) return weight_bytes();
  return weight_bytes() + (dtype == HH_FLASH_INT4M ? 4 : 2) * (d / group_size);
}

}  // namespace handheld::flash
