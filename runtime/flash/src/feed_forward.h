// The arithmetic of a feed-forward layer over any set of bundles, on one thread.
#pragma once

#include <cstdint>
#include <functional>

#include "format.h"
#include "input.h"
#include "memory.h"

namespace handheld::flash {

// Which neurons count in exact mode, and which did.
struct Activity {
  float threshold = 0;
  const float* importance = nullptr;  // by position; null: 1 for all
  const uint32_t* positions = nullptr;
  uint8_t* active = nullptr;  // set to 1 for each bundle that counts; null: nobody asks
};

// So many bundles go through a stage of the arithmetic before the next one; of less, some are treated one by one.
size_t batch_size(const BundleShape& shape, bool rounds_hidden);

float activate(hh_flash_activation activation, float value);

// The bundles that the thread computes next, to be fetched meanwhile; asked for once, as the last ones before begin.
using Following = std::function<Span<const uint8_t* const>()>;

// y += sum over the bundles of h * down, with h = activation(gate . x) * (up . x) or activation(up . x + bias).
// Without `activity` every bundle counts. `rounds_hidden`: h times the scales of down is rounded, as
// Kernels::quantised_accumulate does.
void compute_bundles(const BundleShape& shape, const Kernels& kernels, const Input& x,
                     Span<const uint8_t* const> bundles, const Activity* activity, bool rounds_hidden, float* y,
                     const Following& following);

}  // namespace handheld::flash
