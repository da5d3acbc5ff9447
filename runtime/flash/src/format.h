// neurons.bin: a header that is hashed, then the layers' bundles. docs/flash.md has the byte tables.
//
// A bundle is all that one neuron needs: [gate part | up part | down part | up bias], each part being a row of d_model
// weights followed by its scales (the down part is a column of the checkpoint). Bundles lie in groups, and groups start
// on 16 KiB pages, so that a bundle never straddles two groups. A position is a neuron's place in that order; the
// checkpoint's ids map to positions by the layer's `order` tensor.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "memory.h"
#include "row_format.h"
#include "sha256.h"

namespace handheld::flash {

constexpr uint32_t kFormatVersion = 1;
constexpr uint32_t kPageBytes = 16 * 1024;
constexpr uint32_t kMaxParts = 3;

// What lies where inside a bundle.
struct BundleShape {
  uint32_t d_model = 0;
  hh_flash_dtype dtype = HH_FLASH_FP16;
  uint32_t group_size = 0;  // weights per scale; 0 where there are none
  hh_flash_activation activation = HH_FLASH_RELU;
  bool gated = false;
  bool up_bias = false;

  uint32_t parts() const { return gated ? 3 : 2; }
  RowFormat row() const { return {dtype, d_model, group_size}; }
  uint32_t part_bytes() const { return row().part_bytes(); }
  uint32_t gate_offset() const { return 0; }
  uint32_t up_offset() const { return gated ? part_bytes() : 0; }
  uint32_t down_offset() const { return up_offset() + part_bytes(); }
  uint32_t bias_offset() const { return static_cast<uint32_t>(round_up(down_offset() + part_bytes(), 4)); }
  uint32_t content_bytes() const { return bias_offset() + (up_bias ? 4 : 0); }
};

struct LayerRecord {
  uint64_t offset = 0;
  uint64_t bytes = 0;
  Digest sha256{};
  float threshold = 0;  // of exact mode: a neuron counts where |h| * importance is above it
};

struct Layout {
  BundleShape shape;
  uint32_t d_ff = 0;
  bool down_bias = false;
  hh_flash_selector selector = HH_FLASH_SELECTOR_NONE;
  uint32_t selector_size = 0;  // rank of a low-rank selector; weights per scale of a ternary one
  uint32_t bundle_stride = 0;
  uint32_t bundles_per_group = 0;
  uint32_t group_bytes = 0;
  uint64_t file_bytes = 0;
  uint64_t resident_bytes = 0;
  Digest resident_sha256{};
  Digest identity{};
  std::vector<LayerRecord> layers;

  uint32_t layer_count() const { return static_cast<uint32_t>(layers.size()); }
  uint64_t bundle_offset(uint32_t layer, uint32_t position) const {
    return layers[layer].offset + uint64_t{position / bundles_per_group} * group_bytes +
           uint64_t{position % bundles_per_group} * bundle_stride;
  }
};

// Offsets of a layer's bundles, asked for in ascending order of position mostly: dividing by the size of a group for
// every one would take longer than planning its read.
class BundleOffsets {
 public:
  BundleOffsets(const Layout& layout, uint32_t layer) : layout_(layout), layer_(layer) {}

  uint64_t operator()(uint32_t position) {
    // Also true for a position before the group, whose distance wraps.
    if (position - first_ >= count_) enter_group_of(position);
    return offset_ + uint64_t{position - first_} * layout_.bundle_stride;
  }

 private:
  void enter_group_of(uint32_t position) {
    count_ = layout_.bundles_per_group;
    first_ = position / count_ * count_;
    offset_ = layout_.bundle_offset(layer_, first_);
  }

  const Layout& layout_;
  uint32_t layer_;
  uint32_t first_ = 0;  // position of the group at hand
  uint32_t count_ = 0;
  uint64_t offset_ = 0;
};

// The bytes that hold the header, from the file's first 16: checked against the file's size, so that it can be read.
constexpr size_t kPreambleBytes = 16;
uint64_t header_bytes(Bytes preamble, uint64_t file_bytes);

// Checks the hash, every field and every offset. Throws Error(HH_FLASH_BAD_PACK).
Layout parse_header(Bytes header, uint64_t file_bytes);

}  // namespace handheld::flash
