#include "kernels.h"

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
