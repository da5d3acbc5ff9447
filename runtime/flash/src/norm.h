// Normalisation of one token's vector.
#pragma once

#include <cstdint>

namespace handheld::flash {

struct Norm {
  const float* weight = nullptr;
  const float* bias = nullptr;  // null: none
};

// out = x / sqrt(mean(x^2) + eps) * weight + bias (arXiv 1910.07467).
void rms_norm(const Norm& norm, float eps, const float* x, uint32_t d, float* out);

// out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias (arXiv 1607.06450).
void layer_norm(const Norm& norm, float eps, const float* x, uint32_t d, float* out);

}  // namespace handheld::flash
