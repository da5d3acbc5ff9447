#include "norm.h"

#include <cmath>

namespace handheld::flash {
namespace {

// Sums in lanes, which compilers vectorise, and which err less than one running sum. d is a multiple of 32.
template <typename Term>
float sum(uint32_t d, Term term) {
  constexpr uint32_t kLanes = 16;
  float lanes[kLanes] = {};
  for (uint32_t i = 0; i < d; i += kLanes) {
    for (uint32_t lane = 0; lane < kLanes; ++lane) lanes[lane] += term(i + lane);
  }
  float total = 0;
  for (const float lane : lanes) total += lane;
  return total;
}

void finish(const Norm& norm, const float* x, float mean, float factor, uint32_t d, float* out) {
  for (uint32_t i = 0; i < d; ++i) out[i] = (x[i] - mean) * factor * norm.weight[i];
  if (norm.bias == nullptr) return;
  for (uint32_t i = 0; i < d; ++i) out[i] += norm.bias[i];
}

}  // namespace

void rms_norm(const Norm& norm, float eps, const float* x, uint32_t d, float* out) {
  const float squares = sum(d, [&](uint32_t i) { return x[i] * x[i]; });
  finish(norm, x, 0, 1 / std::sqrt(squares / static_cast<float>(d) + eps), d, out);
}

void layer_norm(const Norm& norm, float eps, const float* x, uint32_t d, float* out) {
  const float mean = sum(d, [&](uint32_t i) { return x[i]; }) / static_cast<float>(d);
  const float squares = sum(d, [&](uint32_t i) { return (x[i] - mean) * (x[i] - mean); });
  finish(norm, x, mean, 1 / std::sqrt(squares / static_cast<float>(d) + eps), d, out);
}

}  // namespace handheld::flash
