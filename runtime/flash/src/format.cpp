#include "format.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

namespace handheld::flash {
namespace {

constexpr std::array<uint8_t, 8> kMagic{'H', 'H', 'F', 'L', 'A', 'S', 'H', 0};
constexpr size_t kHashAt = 16;
constexpr size_t kHashedFrom = 48;
constexpr size_t kFixedBytes = 192;
constexpr size_t kRecordBytes = 64;
constexpr uint32_t kMaxLayers = 4096;
constexpr uint32_t kMaxModel = 1u << 17;
constexpr uint32_t kMaxNeurons = 1u << 24;

constexpr uint32_t kUpBias = 1;
constexpr uint32_t kDownBias = 2;

[[noreturn]] void bad(const std::string& what) {
  fail(HH_FLASH_BAD_PACK, "neurons.bin: " + what + ". Pack the model again or fetch the pack again.");
}

void require(bool holds, const char* what) {
  if (!holds) bad(what);
}

// Little-endian fields of a buffer whose size was checked.
class Fields {
 public:
  explicit Fields(Bytes bytes) : bytes_(bytes) {}
  uint64_t u64(size_t at) const { return u32(at) | uint64_t{u32(at + 4)} << 32; }
  uint32_t u32(size_t at) const {
    const uint8_t* b = bytes_.data() + at;
    return uint32_t{b[0]} | uint32_t{b[1]} << 8 | uint32_t{b[2]} << 16 | uint32_t{b[3]} << 24;
  }
  float f32(size_t at) const {
    const uint32_t bits = u32(at);
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
  Digest digest(size_t at) const {
    Digest digest;
    std::copy_n(bytes_.data() + at, digest.size(), digest.begin());
    return digest;
  }

 private:
  Bytes bytes_;
};

// Only a value that an enumeration has may be turned into it.
template <typename Enum>
Enum enumeration(uint32_t value, Enum least, Enum most, const char* what) {
  require(value >= static_cast<uint32_t>(least) && value <= static_cast<uint32_t>(most), what);
  return static_cast<Enum>(value);
}

bool is_power_of_two(uint32_t value) { return value != 0 && (value & (value - 1)) == 0; }

// Scales cover whole blocks of 32 weights, the kernels' unit.
bool is_group_of(uint32_t group, uint32_t d_model) {
  return group >= 32 && is_power_of_two(group) && d_model % group == 0;
}

void check_shape(const Layout& layout) {
  const BundleShape& shape = layout.shape;
  require(shape.d_model >= 32 && shape.d_model <= kMaxModel && shape.d_model % 32 == 0,
          "d_model must be a multiple of 32 up to 131072");
  require(layout.d_ff >= 1 && layout.d_ff <= kMaxNeurons, "d_ff must be 1 to 16777216");
  if (!shape.row().grouped()) {
    require(shape.group_size == 0, "fp32 and fp16 rows have no scales");
  } else {
    require(is_group_of(shape.group_size, shape.d_model),
            "the group size must be a power of two of 32 or more that divides d_model");
  }
  const uint32_t size = layout.selector_size;
  if (layout.selector == HH_FLASH_SELECTOR_NONE) {
    require(size == 0, "a size without a selector");
  } else if (layout.selector == HH_FLASH_SELECTOR_LOW_RANK) {
    require(size >= 32 && size <= shape.d_model && size % 32 == 0,
            "a selector's rank must be a multiple of 32 up to d_model");
  } else {
    require(size >= 32 && size % 32 == 0 && shape.d_model % size == 0,
            "a ternary selector's group size must be a multiple of 32 that divides d_model");
  }
}

void check_bundles(const Layout& layout) {
  require(layout.bundle_stride >= layout.shape.content_bytes() && layout.bundle_stride % 16 == 0,
          "bundles overlap");
  require(layout.bundles_per_group >= 1 && layout.bundles_per_group <= kMaxNeurons, "empty groups");
  require(layout.group_bytes != 0 && layout.group_bytes % kPageBytes == 0, "groups are not on 16 KiB pages");
  require(uint64_t{layout.bundle_stride} * layout.bundles_per_group <= layout.group_bytes, "groups overlap");
}

void check_layers(const Layout& layout, uint64_t first_offset) {
  const uint64_t groups = (uint64_t{layout.d_ff} + layout.bundles_per_group - 1) / layout.bundles_per_group;
  const uint64_t layer_bytes = checked_mul(groups, layout.group_bytes);
  uint64_t offset = first_offset;
  for (const LayerRecord& layer : layout.layers) {
    require(layer.offset == offset && layer.bytes == layer_bytes, "a layer is not where it must be");
    require(std::isfinite(layer.threshold) && layer.threshold >= 0, "a threshold is negative or not a number");
    offset = checked_add(offset, layer_bytes);
  }
  require(offset == layout.file_bytes, "the layers do not end with the file");
}

}  // namespace

uint64_t header_bytes(Bytes preamble, uint64_t file_bytes) {
  require(preamble.size() >= kPreambleBytes && std::equal(kMagic.begin(), kMagic.end(), preamble.data()),
          "this is not the neurons.bin of a flash pack");
  const Fields fields(preamble);
  const uint32_t version = fields.u32(8);
  if (version != kFormatVersion) {
    fail(HH_FLASH_BAD_PACK, "neurons.bin has format version " + std::to_string(version) + "; this engine reads version " +
                                std::to_string(kFormatVersion) + ". Pack the model with the same version of handheld.");
  }
  const uint32_t bytes = fields.u32(12);
  require(bytes % kPageBytes == 0 && bytes >= kPageBytes &&
              bytes <= round_up(kFixedBytes + uint64_t{kMaxLayers} * kRecordBytes, kPageBytes),
          "the header's size is impossible");
  require(bytes <= file_bytes, "the file is truncated within its header");
  return bytes;
}

Layout parse_header(Bytes header, uint64_t file_bytes) {
  require(header.size() >= kPreambleBytes, "the file is truncated within its header");
  require(header_bytes(header, file_bytes) == header.size(), "the header's size is impossible");
  const Fields fields(header);
  Layout layout;
  layout.identity = sha256(header.subspan(kHashedFrom, header.size() - kHashedFrom));
  require(layout.identity == fields.digest(kHashAt), "the header was altered");

  layout.file_bytes = fields.u64(48);
  if (layout.file_bytes != file_bytes) {
    bad("the file has " + std::to_string(file_bytes) + " bytes and must have " + std::to_string(layout.file_bytes));
  }
  layout.resident_bytes = fields.u64(56);
  layout.resident_sha256 = fields.digest(64);
  const uint32_t layers = fields.u32(96);
  layout.shape.d_model = fields.u32(100);
  layout.d_ff = fields.u32(104);
  layout.shape.activation = enumeration(fields.u32(108), HH_FLASH_RELU, HH_FLASH_SILU, "unknown activation");
  const uint32_t gated = fields.u32(112);
  layout.shape.dtype = enumeration(fields.u32(116), HH_FLASH_FP16, HH_FLASH_INT4M, "unknown dtype");
  layout.shape.group_size = fields.u32(120);
  layout.bundle_stride = fields.u32(124);
  layout.bundles_per_group = fields.u32(128);
  layout.group_bytes = fields.u32(132);
  const uint32_t flags = fields.u32(136);
  layout.selector =
      enumeration(fields.u32(140), HH_FLASH_SELECTOR_NONE, HH_FLASH_SELECTOR_TERNARY, "unknown selector");
  layout.selector_size = fields.u32(144);

  require(gated <= 1 && (flags & ~(kUpBias | kDownBias)) == 0, "unknown flags");
  layout.shape.gated = gated == 1;
  layout.shape.up_bias = (flags & kUpBias) != 0;
  layout.down_bias = (flags & kDownBias) != 0;
  require(layers >= 1 && layers <= kMaxLayers && kFixedBytes + uint64_t{layers} * kRecordBytes <= header.size(),
          "the number of layers is impossible");
  check_shape(layout);
  check_bundles(layout);

  layout.layers.resize(layers);
  for (size_t i = 0; i < layers; ++i) {
    const size_t at = kFixedBytes + i * kRecordBytes;
    layout.layers[i] = {fields.u64(at), fields.u64(at + 8), fields.digest(at + 16), fields.f32(at + 48)};
  }
  check_layers(layout, header.size());
  return layout;
}

}  // namespace handheld::flash
