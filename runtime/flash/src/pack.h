// An open pack: the layout, the file of bundles, and the small tensors that the engine keeps resident.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "file.h"
#include "format.h"
#include "memory.h"
#include "resident.h"

namespace handheld::flash {

class ModelWeights;

// Tensors of one layer, by position. Absent ones are null.
struct LayerTensors {
  const uint32_t* id_of = nullptr;        // `order`: the checkpoint's id of each position; null: the same
  std::vector<uint32_t> position_of;      // its inverse
  const float* down_bias = nullptr;       // [d_model]
  const float* importance = nullptr;      // [d_ff]
  float selector_threshold = 0;
  const float* selector_bias = nullptr;   // [d_ff]
  const uint8_t* selector_rows = nullptr;  // ternary: [d_ff, ternary_row_bytes]
  const float* selector_noise = nullptr;   // ternary: [d_ff, rows of a neuron], variances of the rows' errors
  const uint8_t* selector_a = nullptr;     // low-rank: fp16 [rank, d_model]
  const uint8_t* selector_b = nullptr;     // low-rank: fp16 [d_ff, rank]

  uint32_t id(uint32_t position) const { return id_of == nullptr ? position : id_of[position]; }
  uint32_t position(uint32_t id) const { return position_of.empty() ? id : position_of[id]; }
};

// Ternary codes and scales of one row, and of a neuron's gate and up rows together.
uint32_t ternary_part_bytes(const Layout& layout);
uint32_t ternary_row_bytes(const Layout& layout);

// Immutable once made, so it is shared by sessions and threads; the lock is for what models share.
class Pack {
 public:
  // Reads the headers and the engine's tensors; no weights. Throws Error.
  Pack(const std::string& folder, bool direct);

  const Layout& layout() const { return layout_; }
  const File& bundles() const { return bundles_; }
  const LayerTensors& layer(uint32_t layer) const { return layers_[layer]; }
  uint64_t held_bytes() const { return held_bytes_; }
  uint64_t selector_bytes() const { return selector_bytes_; }

  ResidentFile resident() const { return {folder_, layout_}; }
  // The tensors of the whole model, read by the first that asks and held as long as someone does.
  std::shared_ptr<const ModelWeights> model_weights() const;

  // Compares the SHA-256 of every layer and of resident.safetensors. Throws Error(HH_FLASH_BAD_PACK).
  void verify() const;

 private:
  void read_header();
  void read_tensors();
  const uint8_t* take(const ResidentFile& file, const std::string& name, const char* dtype,
                      const std::vector<uint64_t>& shape, bool required);
  void read_layer(const ResidentFile& file, uint32_t layer);
  void invert_order(uint32_t layer);

  std::string folder_;
  File bundles_;
  Layout layout_;
  std::vector<LayerTensors> layers_;
  std::vector<AlignedArray<uint8_t>> tensors_;
  uint64_t held_bytes_ = 0;
  uint64_t selector_bytes_ = 0;

  mutable std::mutex mutex_;
  mutable std::weak_ptr<const ModelWeights> model_weights_;
};

}  // namespace handheld::flash
