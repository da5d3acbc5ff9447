#include "selector.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "input.h"

namespace handheld::flash {
namespace {

// Measured on a virtual disk: what limits small reads is their number (docs/flash.md). Phones were not measured.
constexpr uint32_t kNeighbourhoodBytes = kPageBytes;

struct Part {
  uint32_t first;
  uint32_t last;
};

// Rows first .. last in equal parts.
Part part_of(uint32_t first, uint32_t last, uint32_t part, size_t parts) {
  const uint64_t count = last - first;
  return {first + static_cast<uint32_t>(count * part / parts), first + static_cast<uint32_t>(count * (part + 1) / parts)};
}

}  // namespace

Selector::Selector(const Pack& pack, const Kernels& kernels, ComputePool& pool,
                   const hh_flash_session_options& options)
    : pack_(pack),
      kernels_(kernels),
      pool_(pool),
      kind_(options.selector == HH_FLASH_SELECTOR_HOT ? HH_FLASH_SELECTOR_HOT : pack.layout().selector),
      share_(options.select_share),
      miss_weight_(options.miss_weight) {
  const Layout& layout = pack.layout();
  const bool neighbours = (options.techniques & HH_FLASH_NEIGHBOURS) != 0;
  neighbourhood_ = neighbours ? std::max(1u, kNeighbourhoodBytes / layout.bundle_stride) : 1;
  if (kind_ == HH_FLASH_SELECTOR_LOW_RANK || kind_ == HH_FLASH_SELECTOR_TERNARY) {
    scores_.resize(layout.d_ff);
    sorted_.resize(layout.d_ff);
  }
  if (kind_ == HH_FLASH_SELECTOR_LOW_RANK) hidden_.resize(layout.selector_size);
  if (kind_ == HH_FLASH_SELECTOR_TERNARY) {
    ternary_.emplace(pack, kernels, pool, (options.techniques & HH_FLASH_GATE_FIRST) != 0,
                     (options.techniques & HH_FLASH_COMPUTE_RESIDENT) != 0);
  }
}

uint64_t Selector::scratch_bytes(const Layout& layout) {
  const uint64_t hidden = uint64_t{layout.selector_size} * sizeof(float);
  return uint64_t{layout.d_ff} * 2 * sizeof(float) + std::max(TernaryScores::bytes(layout), hidden);
}

size_t Selector::select(uint32_t layer, const float* x, uint32_t skipped, const Table* table, uint32_t* selected) {
  const LayerTensors& tensors = pack_.layer(layer);
  // A share is of all neurons, so all of them are ranked.
  const uint32_t first = share_ == 0 ? skipped : 0;
  if (first == pack_.layout().d_ff) return 0;
  const Misses misses{miss_weight_ == 1 ? nullptr : table, miss_weight_};
  switch (kind_) {
    case HH_FLASH_SELECTOR_LOW_RANK:
      score_low_rank(tensors, x, first, misses);
      break;
    case HH_FLASH_SELECTOR_TERNARY:
      // Of a share, no score is known beforehand to be too low.
      ternary_->score(layer, x, first, share_ == 0 ? tensors.selector_threshold : 0, misses, scores_.data());
      break;
    case HH_FLASH_SELECTOR_HOT:
      return 0;
    default:
      fail(HH_FLASH_UNSUPPORTED, "This pack has no selector. Give the neurons, or use dense or exact mode.");
  }
  const float lowest = cut(tensors);
  // Scores that are not positive were not weighed.
  if (misses.table == nullptr || neighbourhood_ == 1 || lowest <= 0) return take(first, lowest, selected);
  return take_with_neighbours(misses, first, lowest, selected);
}

// What scores above `lowest`. Without branches, which could not be foreseen; there is room, as no more than i are selected
// before i.
size_t Selector::take(uint32_t first, float lowest, uint32_t* selected) const {
  size_t count = 0;
  for (uint32_t i = first; i < pack_.layout().d_ff; ++i) {
    selected[count] = i;
    count += scores_[i] > lowest ? 1 : 0;
  }
  return count;
}

size_t Selector::take_with_neighbours(const Misses& misses, uint32_t first, float lowest, uint32_t* selected) {
  if (ternary_) complete_neighbours(misses, first, lowest, selected);
  size_t count = 0;
  by_neighbourhood(first, [&](uint32_t at, uint32_t end) {
    const bool reading = reads(misses, at, end, lowest);
    for (; at < end; ++at) {
      selected[count] = at;
      count += scores_[at] > (reading ? lowest * misses.weigh(at) : lowest) ? 1 : 0;
    }
  });
  return count;
}

// Whole scores are what counts beside a neuron that is read, so nothing may be left out there that has to be read.
void Selector::complete_neighbours(const Misses& misses, uint32_t first, float lowest, uint32_t* scratch) {
  size_t count = 0;
  by_neighbourhood(first, [&](uint32_t at, uint32_t end) {
    if (!reads(misses, at, end, lowest)) return;
    for (; at < end; ++at) {
      scratch[count] = at;
      count += scores_[at] == TernaryScores::kLeftOut && misses.has(at) ? 1 : 0;
    }
  });
  ternary_->complete(scratch, count, misses, scores_.data());
}

// Calls use(begin, end) for all positions from `first` on.
template <typename Use>
void Selector::by_neighbourhood(uint32_t first, Use use) const {
  const uint32_t d_ff = pack_.layout().d_ff;
  uint32_t end = (first / neighbourhood_ + 1) * neighbourhood_;
  for (uint32_t at = first; at < d_ff; at = end, end += neighbourhood_) use(at, std::min(end, d_ff));
}

bool Selector::reads(const Misses& misses, uint32_t first, uint32_t last, float lowest) const {
  for (uint32_t i = first; i < last; ++i) {
    // In this order: few score as much.
    if (scores_[i] > lowest && misses.has(i)) return true;
  }
  return false;
}

// Scores above this are selected.
float Selector::cut(const LayerTensors& tensors) {
  if (share_ == 0) return tensors.selector_threshold;
  const size_t wanted = std::max<size_t>(1, static_cast<size_t>(std::lround(share_ * static_cast<float>(scores_.size()))));
  if (wanted >= scores_.size()) return -std::numeric_limits<float>::infinity();
  // A NaN would break the order that nth_element relies on.
  std::transform(scores_.begin(), scores_.end(), sorted_.begin(),
                 [](float score) { return std::isnan(score) ? std::numeric_limits<float>::infinity() : score; });
  const auto next = sorted_.begin() + static_cast<std::ptrdiff_t>(wanted);
  std::nth_element(sorted_.begin(), next, sorted_.end(), std::greater<float>());
  return *next;
}

void Selector::score_low_rank(const LayerTensors& tensors, const float* x, uint32_t first, const Misses& misses) {
  const Layout& layout = pack_.layout();
  const uint32_t rank = layout.selector_size;
  const RowFormat a{HH_FLASH_FP16, layout.shape.d_model, 0};
  const RowFormat b{HH_FLASH_FP16, rank, 0};
  const size_t parts = kPartsPerThread * pool_.threads();
  pool_.run(parts, [&](uint32_t index, uint32_t) {
    const Part part = part_of(0, rank, index, parts);
    multiply_rows(kernels_, a, tensors.selector_a, part.first, part.last, {x, nullptr}, hidden_.data());
  });
  pool_.run(parts, [&](uint32_t index, uint32_t) {
    const Part part = part_of(first, layout.d_ff, index, parts);
    multiply_rows(kernels_, b, tensors.selector_b, part.first, part.last, {hidden_.data(), nullptr}, scores_.data());
    for (uint32_t i = part.first; i < part.last; ++i) {
      if (tensors.selector_bias != nullptr) scores_[i] += tensors.selector_bias[i];
      // A score below zero would rise.
      if (scores_[i] > 0) scores_[i] *= misses.weigh(i);
    }
  });
}

}  // namespace handheld::flash
