#include "pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "model_weights.h"

namespace handheld::flash {
namespace {

constexpr const char* kBundles = "/neurons.bin";
constexpr const char* kResident = "/resident.safetensors";
constexpr size_t kHashChunkBytes = 1u << 20;

void require_hash(const File& file, uint64_t offset, uint64_t bytes, const Digest& expected, const std::string& what) {
  const auto buffer = allocate_aligned<uint8_t>(kHashChunkBytes);
  Sha256 hash;
  for (uint64_t done = 0; done < bytes;) {
    const size_t some = static_cast<size_t>(std::min<uint64_t>(kHashChunkBytes, bytes - done));
    file.read(offset + done, buffer.get(), some);
    hash.update({buffer.get(), some});
    done += some;
  }
  if (hash.finish() != expected) {
    fail(HH_FLASH_BAD_PACK, what + " was altered: its SHA-256 is not the one in the header. Fetch the pack again.");
  }
}

}  // namespace

uint32_t ternary_part_bytes(const Layout& layout) {
  return layout.shape.d_model / 4 + 2 * (layout.shape.d_model / layout.selector_size);
}

uint32_t ternary_row_bytes(const Layout& layout) { return (layout.shape.gated ? 2 : 1) * ternary_part_bytes(layout); }

Pack::Pack(const std::string& folder, bool direct) : folder_(folder), bundles_(folder + kBundles, direct) {
  read_header();
  read_tensors();
}

void Pack::read_header() {
  // The header is read through a descriptor of its own: it need not be aligned, and stays out of direct reads.
  const File file(folder_ + kBundles, false);
  std::vector<uint8_t> preamble(kPreambleBytes);
  if (file.size() < preamble.size()) fail(HH_FLASH_BAD_PACK, folder_ + kBundles + " is truncated.");
  file.read(0, preamble.data(), preamble.size());
  std::vector<uint8_t> header(static_cast<size_t>(header_bytes(preamble, file.size())));
  file.read(0, header.data(), header.size());
  layout_ = parse_header(header, file.size());
  if (bundles_.size() != file.size()) fail(HH_FLASH_BAD_PACK, folder_ + kBundles + " is being replaced.");
}

void Pack::read_tensors() {
  const ResidentFile file = resident();
  layers_.resize(layout_.layers.size());
  for (uint32_t layer = 0; layer < layout_.layer_count(); ++layer) read_layer(file, layer);
}

const uint8_t* Pack::take(const ResidentFile& file, const std::string& name, const char* dtype,
                          const std::vector<uint64_t>& shape, bool required) {
  const TensorEntry* tensor = file.find(name, dtype, shape, required);
  if (tensor == nullptr) return nullptr;
  tensors_.push_back(allocate_large<uint8_t>(static_cast<size_t>(tensor->bytes)));
  file.read(*tensor, tensors_.back().get());
  held_bytes_ += tensor->bytes;
  return tensors_.back().get();
}

void Pack::read_layer(const ResidentFile& file, uint32_t layer) {
  LayerTensors& out = layers_[layer];
  const std::string prefix = "flash." + std::to_string(layer) + ".";
  const uint64_t d_ff = layout_.d_ff;
  const uint64_t d_model = layout_.shape.d_model;
  const auto floats = [&](const char* name, uint64_t size, bool required) {
    return reinterpret_cast<const float*>(take(file, prefix + name, "F32", {size}, required));
  };
  // Not negative, so that the bits of I32 are those of an id.
  out.id_of = reinterpret_cast<const uint32_t*>(take(file, prefix + "order", "I32", {d_ff}, false));
  if (out.id_of != nullptr) invert_order(layer);
  out.importance = floats("importance", d_ff, false);
  out.down_bias = floats("down_bias", d_model, layout_.down_bias);

  const uint64_t before = held_bytes_;
  if (layout_.selector != HH_FLASH_SELECTOR_NONE) {
    out.selector_threshold = *floats("selector.threshold", 1, true);
    out.selector_bias = floats("selector.bias", d_ff, false);
  }
  if (layout_.selector == HH_FLASH_SELECTOR_LOW_RANK) {
    const uint64_t rank = layout_.selector_size;
    out.selector_a = take(file, prefix + "selector.a", "F16", {rank, d_model}, true);
    out.selector_b = take(file, prefix + "selector.b", "F16", {d_ff, rank}, true);
  } else if (layout_.selector == HH_FLASH_SELECTOR_TERNARY) {
    out.selector_rows = take(file, prefix + "selector.rows", "U8", {d_ff, ternary_row_bytes(layout_)}, true);
    const uint64_t parts = layout_.shape.gated ? 2 : 1;
    const uint8_t* noise = take(file, prefix + "selector.noise", "F32", {d_ff, parts}, false);
    out.selector_noise = reinterpret_cast<const float*>(noise);
  }
  selector_bytes_ += held_bytes_ - before;
}

void Pack::invert_order(uint32_t layer) {
  LayerTensors& tensors = layers_[layer];
  tensors.position_of.assign(layout_.d_ff, UINT32_MAX);
  for (uint32_t position = 0; position < layout_.d_ff; ++position) {
    const uint32_t id = tensors.id_of[position];
    if (id >= layout_.d_ff || tensors.position_of[id] != UINT32_MAX) {
      fail(HH_FLASH_BAD_PACK, folder_ + kResident + ": flash." + std::to_string(layer) +
                                  ".order is not a permutation of the neurons.");
    }
    tensors.position_of[id] = position;
  }
  held_bytes_ += uint64_t{layout_.d_ff} * sizeof(uint32_t);
}

std::shared_ptr<const ModelWeights> Pack::model_weights() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::shared_ptr<const ModelWeights> weights = model_weights_.lock();
  if (weights == nullptr) {
    auto read = std::make_shared<ModelWeights>(*this);
    read->read(*this);
    weights = std::move(read);
    model_weights_ = weights;
  }
  return weights;
}

void Pack::verify() const {
  const File bundles(folder_ + kBundles, false);
  for (size_t i = 0; i < layout_.layers.size(); ++i) {
    const LayerRecord& layer = layout_.layers[i];
    require_hash(bundles, layer.offset, layer.bytes, layer.sha256, folder_ + kBundles + ", layer " + std::to_string(i));
  }
  const File resident_file(folder_ + kResident, false);
  require_hash(resident_file, 0, layout_.resident_bytes, layout_.resident_sha256, folder_ + kResident);
}

}  // namespace handheld::flash
