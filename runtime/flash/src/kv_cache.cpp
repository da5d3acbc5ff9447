#include "kv_cache.h"

#include <cstring>

#include "half.h"

namespace handheld::flash {

uint64_t KvCache::Shape::bytes() const {
  const uint64_t rows = checked_mul(uint64_t{layers} * kv_heads * 2, context_tokens);
  return checked_mul(rows, row_bytes());
}

KvCache::KvCache(const Shape& shape)
    : shape_(shape), memory_(allocate_aligned<uint8_t>(static_cast<size_t>(shape.bytes()))) {}

uint8_t* KvCache::rows(uint32_t layer, uint32_t kv_head, uint32_t which) const {
  const size_t index = (size_t{layer} * shape_.kv_heads + kv_head) * 2 + which;
  return memory_.get() + index * shape_.context_tokens * shape_.row_bytes();
}

void KvCache::store(uint32_t layer, uint32_t position, const float* keys, const float* values) {
  const size_t offset = size_t{position} * shape_.row_bytes();
  for (uint32_t head = 0; head < shape_.kv_heads; ++head) {
    put(keys + size_t{head} * shape_.head_dim, rows(layer, head, 0) + offset);
    put(values + size_t{head} * shape_.head_dim, rows(layer, head, 1) + offset);
  }
}

void KvCache::put(const float* from, uint8_t* to) const {
  std::memset(to, 0, shape_.row_bytes());
  if (shape_.dtype == HH_FLASH_FP32) {
    std::memcpy(to, from, size_t{shape_.head_dim} * sizeof(float));
    return;
  }
  for (uint32_t i = 0; i < shape_.head_dim; ++i) {
    const uint16_t half = float_to_half(from[i]);
    std::memcpy(to + 2 * size_t{i}, &half, sizeof half);
  }
}

}  // namespace handheld::flash
