// Attention of one new token over the tokens so far (arXiv 1706.03762; heads that share keys: arXiv 2305.13245).
#pragma once

#include <cstdint>
#include <vector>

#include "compute_pool.h"
#include "kernels.h"
#include "kv_cache.h"

namespace handheld::flash {

// Rotary position of one token (arXiv 2104.09864): values i and i + head_dim / 2 of a head turn by one angle.
class Rotation {
 public:
  explicit Rotation(uint32_t head_dim) : cosines_(head_dim / 2), sines_(head_dim / 2) {}

  static uint64_t bytes(uint32_t head_dim) { return sizeof(Rotation) + uint64_t{head_dim} * sizeof(float); }
  void set(uint32_t position, const float* inverse_frequencies, float scale);
  void apply(float* heads, uint32_t count) const;

 private:
  std::vector<float> cosines_;
  std::vector<float> sines_;
};

class Attention {
 public:
  Attention(const Kernels& kernels, ComputePool& pool, const KvCache& cache, uint32_t heads);

  // q[heads * head_dim] -> out of the same shape, over the first `count` positions of the layer's cache.
  void attend(uint32_t layer, uint32_t count, const float* q, float* out);

  static uint64_t scratch_bytes(const KvCache::Shape& shape, uint32_t threads);

 private:
  void attend_head(uint32_t layer, uint32_t head, uint32_t count, const float* q, float* out, float* scratch) const;
  void score(const uint8_t* keys, uint32_t count, const float* q, float* scores) const;
  void mix(const uint8_t* values, uint32_t count, const float* shares, float* out) const;

  const Kernels& kernels_;
  ComputePool& pool_;
  const KvCache& cache_;
  uint32_t heads_;
  size_t scratch_size_;  // floats of one thread: a padded head in, one out, scores
  AlignedArray<float> scratch_;
};

}  // namespace handheld::flash
