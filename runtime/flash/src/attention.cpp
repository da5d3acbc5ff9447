#include "attention.h"

#include <algorithm>
#include <cmath>

namespace handheld::flash {
namespace {

size_t floats_per_thread(const KvCache::Shape& shape) {
  return 2 * size_t{shape.padded_dim()} + round_up(shape.context_tokens, 16);
}

// In place, with the scale applied before.
void softmax(float* scores, uint32_t count) {
  const float largest = *std::max_element(scores, scores + count);
  float total = 0;
  for (uint32_t i = 0; i < count; ++i) {
    scores[i] = std::exp(scores[i] - largest);
    total += scores[i];
  }
  const float inverse = 1 / total;
  for (uint32_t i = 0; i < count; ++i) scores[i] *= inverse;
}

}  // namespace

void Rotation::set(uint32_t position, const float* inverse_frequencies, float scale) {
  for (size_t i = 0; i < cosines_.size(); ++i) {
    const float angle = static_cast<float>(position) * inverse_frequencies[i];
    cosines_[i] = std::cos(angle) * scale;
    sines_[i] = std::sin(angle) * scale;
  }
}

void Rotation::apply(float* heads, uint32_t count) const {
  const size_t half = cosines_.size();
  for (uint32_t head = 0; head < count; ++head) {
    float* first = heads + 2 * half * head;
    float* second = first + half;
    for (size_t i = 0; i < half; ++i) {
      const float a = first[i];
      const float b = second[i];
      first[i] = a * cosines_[i] - b * sines_[i];
      second[i] = b * cosines_[i] + a * sines_[i];
    }
  }
}

Attention::Attention(const Kernels& kernels, ComputePool& pool, const KvCache& cache, uint32_t heads)
    : kernels_(kernels),
      pool_(pool),
      cache_(cache),
      heads_(heads),
      scratch_size_(floats_per_thread(cache.shape())),
      scratch_(allocate_aligned<float>(scratch_size_ * pool.threads())) {}

uint64_t Attention::scratch_bytes(const KvCache::Shape& shape, uint32_t threads) {
  return uint64_t{threads} * floats_per_thread(shape) * sizeof(float);
}

void Attention::attend(uint32_t layer, uint32_t count, const float* q, float* out) {
  const auto some = [&](uint32_t first, uint32_t last, uint32_t thread) {
    for (uint32_t head = first; head < last; ++head) {
      attend_head(layer, head, count, q, out, scratch_.get() + thread * scratch_size_);
    }
  };
  const size_t bytes = size_t{heads_} * count * 2 * cache_.shape().row_bytes();
  if (bytes < kForkBytes) return some(0, heads_, 0);
  pool_.run(heads_, [&](uint32_t head, uint32_t thread) { some(head, head + 1, thread); });
}

void Attention::attend_head(uint32_t layer, uint32_t head, uint32_t count, const float* q, float* out,
                            float* scratch) const {
  const uint32_t dim = cache_.shape().head_dim;
  const uint32_t padded = cache_.shape().padded_dim();
  const uint32_t kv_head = head / (heads_ / cache_.shape().kv_heads);
  float* const query = scratch;
  float* const mixed = scratch + padded;
  float* const scores = mixed + padded;
  std::fill_n(query, 2 * size_t{padded}, 0.0f);
  const float scale = 1 / std::sqrt(static_cast<float>(dim));
  for (uint32_t i = 0; i < dim; ++i) query[i] = q[size_t{head} * dim + i] * scale;
  score(cache_.keys(layer, kv_head), count, query, scores);
  softmax(scores, count);
  mix(cache_.values(layer, kv_head), count, scores, mixed);
  std::copy_n(mixed, dim, out + size_t{head} * dim);
}

void Attention::score(const uint8_t* keys, uint32_t count, const float* q, float* scores) const {
  const size_t stride = cache_.shape().row_bytes();
  for (uint32_t i = 0; i < count; i += kRowsAtOnce) {
    const size_t some = std::min<size_t>(kRowsAtOnce, count - i);
    const uint8_t* rows[kRowsAtOnce];
    for (size_t r = 0; r < some; ++r) rows[r] = keys + (i + r) * stride;
    kernels_.dots(cache_.row_format(), rows, some, q, scores + i, nullptr);
  }
}

void Attention::mix(const uint8_t* values, uint32_t count, const float* shares, float* out) const {
  const size_t stride = cache_.shape().row_bytes();
  for (uint32_t i = 0; i < count; i += kRowsAtOnce) {
    const size_t some = std::min<size_t>(kRowsAtOnce, count - i);
    const uint8_t* rows[kRowsAtOnce];
    for (size_t r = 0; r < some; ++r) rows[r] = values + (i + r) * stride;
    kernels_.accumulate(cache_.row_format(), rows, some, shares + i, out, nullptr);
  }
}

}  // namespace handheld::flash
