#include "selector.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "feed_forward.h"

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

constexpr float kNoNoise[2] = {};

// The root of the mean of h^2, where `products` are of coarse rows: the gate's and up's, or up's alone.
float expected_activation(const BundleShape& shape, const float* products, float bias, const float* noise) {
  const float up = products[shape.gated ? 1 : 0] + bias;
  const float activated = activate(shape.activation, shape.gated ? products[0] : up);
  const float energy = activated * activated + noise[0];
  return std::sqrt(shape.gated ? energy * (up * up + noise[1]) : energy);
}

}  // namespace

Selector::Selector(const Pack& pack, const Kernels& kernels, ComputePool& pool, hh_flash_selector kind, float share,
                   float miss_weight, bool neighbours)
    : pack_(pack), kernels_(kernels), pool_(pool), kind_(kind), share_(share), miss_weight_(miss_weight),
      rounding_(kind == HH_FLASH_SELECTOR_TERNARY ? pack.layout().shape.d_model : 0) {
  const Layout& layout = pack.layout();
  neighbourhood_ = neighbours ? std::max(1u, kNeighbourhoodBytes / layout.bundle_stride) : 1;
  if (kind == HH_FLASH_SELECTOR_LOW_RANK || kind == HH_FLASH_SELECTOR_TERNARY) {
    scores_.resize(layout.d_ff);
    sorted_.resize(layout.d_ff);
  }
  if (kind == HH_FLASH_SELECTOR_LOW_RANK) hidden_.resize(layout.selector_size);
}

uint64_t Selector::scratch_bytes(const Layout& layout) {
  const uint64_t hidden = uint64_t{layout.selector_size} * sizeof(float);
  return uint64_t{layout.d_ff} * 2 * sizeof(float) + std::max(Rounding::bytes(layout.shape.d_model), hidden);
}

size_t Selector::select(uint32_t layer, const float* x, uint32_t skipped, const Table* table, uint32_t* selected) {
  const LayerTensors& tensors = pack_.layer(layer);
  // A share is of all neurons, so all of them are ranked.
  const uint32_t first = share_ == 0 ? skipped : 0;
  if (first == pack_.layout().d_ff) return 0;
  switch (kind_) {
    case HH_FLASH_SELECTOR_LOW_RANK:
      score_low_rank(tensors, x, first);
      break;
    case HH_FLASH_SELECTOR_TERNARY:
      score_ternary(tensors, x, first);
      break;
    case HH_FLASH_SELECTOR_HOT:
      return 0;
    default:
      fail(HH_FLASH_UNSUPPORTED, "This pack has no selector. Give the neurons, or use dense or exact mode.");
  }
  if (table == nullptr || miss_weight_ == 1) return take(first, cut(tensors), selected);
  weigh_misses(*table, first);
  const float lowest = cut(tensors);
  // Scores that are not positive were not weighed.
  if (neighbourhood_ == 1 || lowest <= 0) return take(first, lowest, selected);
  return take_with_neighbours(*table, first, lowest, selected);
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

size_t Selector::take_with_neighbours(const Table& table, uint32_t first, float lowest, uint32_t* selected) const {
  const uint32_t d_ff = pack_.layout().d_ff;
  const auto missing = [&](uint32_t i) { return table.row_of(i) == Table::kNone; };
  size_t count = 0;
  for (uint32_t at = first; at < d_ff;) {
    const uint32_t end = std::min(d_ff, (at / neighbourhood_ + 1) * neighbourhood_);
    bool reads = false;
    for (uint32_t i = at; i < end; ++i) reads |= missing(i) && scores_[i] > lowest;
    const float lowest_missing = reads ? lowest * miss_weight_ : lowest;
    for (; at < end; ++at) {
      selected[count] = at;
      count += scores_[at] > (missing(at) ? lowest_missing : lowest) ? 1 : 0;
    }
  }
  return count;
}

void Selector::weigh_misses(const Table& table, uint32_t first) {
  for (uint32_t i = first; i < pack_.layout().d_ff; ++i) {
    // A score below zero would rise.
    const bool weighed = table.row_of(i) == Table::kNone && scores_[i] > 0;
    scores_[i] *= weighed ? miss_weight_ : 1.0f;
  }
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

void Selector::score_low_rank(const LayerTensors& tensors, const float* x, uint32_t first) {
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
    if (tensors.selector_bias == nullptr) return;
    for (uint32_t i = part.first; i < part.last; ++i) scores_[i] += tensors.selector_bias[i];
  });
}

void Selector::score_ternary(const LayerTensors& tensors, const float* x, uint32_t first) {
  const Layout& layout = pack_.layout();
  const BundleShape& shape = layout.shape;
  const QuantisedVector& input = rounding_.round(kernels_, x, shape.d_model, layout.selector_size);
  const size_t row_bytes = ternary_row_bytes(layout);
  const size_t rows = shape.gated ? 2 : 1;  // of a neuron: gate and up, or up alone
  const size_t parts = kPartsPerThread * pool_.threads();
  pool_.run(parts, [&](uint32_t index, uint32_t) {
    const Part part = part_of(first, layout.d_ff, index, parts);
    constexpr uint32_t kNeurons = 64;
    float products[2 * kNeurons];
    for (uint32_t at = part.first; at < part.last; at += kNeurons) {
      const uint32_t some = std::min(kNeurons, part.last - at);
      kernels_.ternary_dots(tensors.selector_rows + at * row_bytes, some * rows, input, products);
      for (uint32_t i = 0; i < some; ++i) {
        const float bias = tensors.selector_bias == nullptr ? 0 : tensors.selector_bias[at + i];
        const float* noise = tensors.selector_noise == nullptr ? kNoNoise : tensors.selector_noise + (at + i) * rows;
        scores_[at + i] = expected_activation(shape, products + i * rows, bias, noise) *
                          (tensors.importance == nullptr ? 1.0f : tensors.importance[at + i]);
      }
    }
  });
}

}  // namespace handheld::flash
