#include "kernels.h"

#include <algorithm>

#include "status.h"

namespace handheld::flash {
namespace {

bool has_avx2() {
#if defined(__x86_64__)
  // f16c is older than AVX2 and in every processor that has it; Clang does not know its name here.
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

bool has_avx512() {
#if defined(__x86_64__)
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
         __builtin_cpu_supports("avx512vbmi");
#else
  return false;
#endif
}

const Kernels* supported(hh_flash_kernels wanted) {
  switch (wanted) {
    case HH_FLASH_KERNELS_PORTABLE:
      return &portable_kernels();
    case HH_FLASH_KERNELS_AVX2:
      return has_avx2() ? avx2_kernels() : nullptr;
    case HH_FLASH_KERNELS_AVX512:
      return has_avx512() ? avx512_kernels() : nullptr;
    case HH_FLASH_KERNELS_NEON:
      return neon_kernels();
    default:
      return nullptr;
  }
}

}  // namespace

void multiply_rows(const Kernels& kernels, const RowFormat& format, const uint8_t* matrix, size_t first, size_t last,
                   const float* x, float* out) {
  const size_t stride = format.part_bytes();
  for (size_t i = first; i < last; i += kRowsAtOnce) {
    const size_t some = std::min(kRowsAtOnce, last - i);
    const uint8_t* rows[kRowsAtOnce];
    const uint8_t* ahead[kRowsAtOnce];
    for (size_t r = 0; r < some; ++r) rows[r] = matrix + (i + r) * stride;
    for (size_t r = 0; r < kRowsAtOnce; ++r) ahead[r] = matrix + std::min(i + kRowsAtOnce + r, last - 1) * stride;
    kernels.dots(format, rows, some, x, out + i, ahead);
  }
}

const Kernels& find_kernels(hh_flash_kernels wanted) {
  if (wanted == HH_FLASH_KERNELS_AUTO) {
    for (const auto best : {HH_FLASH_KERNELS_NEON, HH_FLASH_KERNELS_AVX512, HH_FLASH_KERNELS_AVX2}) {
      if (const Kernels* kernels = supported(best)) return *kernels;
    }
    return portable_kernels();
  }
  if (const Kernels* kernels = supported(wanted)) return *kernels;
  fail(HH_FLASH_UNSUPPORTED, "This processor does not have the kernels asked for. Use HH_FLASH_KERNELS_AUTO.");
}

}  // namespace handheld::flash
