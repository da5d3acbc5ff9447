// Keys and values of the tokens so far, by layer, head and position.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "memory.h"

namespace handheld::flash {

class KvCache {
 public:
  struct Shape {
    uint32_t layers;
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t context_tokens;
    hh_flash_dtype dtype;  // fp32 or fp16

    // Rows are zero up to whole blocks of the kernels.
    uint32_t padded_dim() const { return static_cast<uint32_t>(round_up(head_dim, kBlock)); }
    uint32_t row_bytes() const { return padded_dim() * (dtype == HH_FLASH_FP32 ? 4 : 2); }
    uint64_t bytes() const;
  };

  explicit KvCache(const Shape& shape);

  const Shape& shape() const { return shape_; }
  RowFormat row_format() const { return {shape_.dtype, shape_.padded_dim(), 0}; }

  // Of one token and one layer: keys and values [kv_heads * head_dim].
  void store(uint32_t layer, uint32_t position, const float* keys, const float* values);
  const uint8_t* keys(uint32_t layer, uint32_t kv_head) const { return rows(layer, kv_head, 0); }
  const uint8_t* values(uint32_t layer, uint32_t kv_head) const { return rows(layer, kv_head, 1); }

 private:
  uint8_t* rows(uint32_t layer, uint32_t kv_head, uint32_t which) const;
  void put(const float* from, uint8_t* to) const;

  Shape shape_;
  AlignedArray<uint8_t> memory_;
};

}  // namespace handheld::flash
