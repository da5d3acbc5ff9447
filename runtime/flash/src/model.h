// A whole decoder-only model: a session for its feed-forward layers, and everything around them, which is resident.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "attention.h"
#include "kv_cache.h"
#include "model_weights.h"
#include "session.h"

namespace handheld::flash {

using ModelOptions = hh_flash_model_options;

ModelOptions default_model_options();

// What a model of these options holds. Throws Error(HH_FLASH_INVALID_ARGUMENT) for options out of range.
struct ModelBudget {
  ModelBudget(const Pack& pack, const ModelWeights& weights, const ModelOptions& options);

  // Throws Error(HH_FLASH_BUDGET) when `bytes` is below the floor.
  void require(uint64_t bytes) const;

  KvCache::Shape kv;
  uint64_t weight_bytes = 0;
  uint64_t kv_bytes = 0;
  uint64_t buffer_bytes = 0;
  Budget session;
  uint64_t model_bytes = 0;  // all but the session's
  uint64_t floor_bytes = 0;
};

class Model {
 public:
  Model(std::shared_ptr<const Pack> pack, const ModelOptions& options);

  // logits: [vocab] of what follows the last token, or with `all` [tokens][vocab].
  void decode(Span<const uint32_t> tokens, float* logits, bool all);
  void generate(Span<const uint32_t> prompt, size_t max_new, hh_flash_token_callback on_token, void* user);
  void truncate(size_t tokens);
  size_t resident(uint32_t layer, Span<uint32_t> ids) { return session_.resident(layer, ids); }
  void cancel() { session_.cancel(); }
  void resume() { session_.resume(); }
  void reset();
  hh_flash_decode_stats stats();

  // How many tokens of a prompt are computed together at most: one with the hot selector, which reads nothing.
  static uint32_t block_tokens(const ModelOptions& options);
  static uint64_t buffer_bytes(const ModelConfig& config, uint32_t d_model, uint32_t block_tokens);
  // From this layer on, neurons are chosen before the layer's attention, so that reads run under it.
  static uint32_t first_ahead(const ModelOptions& options, uint32_t layers);
  static uint64_t attended_bytes(const ModelOptions& options, uint32_t layers, uint32_t d_model);

 private:
  struct Counters {
    uint64_t tokens, total_ns, attention_ns, head_ns;
  };
  // Vectors of the tokens at hand: x, normed and added of each, the others of the one whose turn it is.
  struct Buffers {
    Buffers(const ModelConfig& config, uint32_t d_model, uint32_t block_tokens);
    static uint64_t bytes(const ModelConfig& config, uint32_t d_model, uint32_t block_tokens);

    AlignedArray<float> memory;
    float *x, *normed, *added, *q, *k, *v, *mixed, *logits;
  };

  void require_tokens(Span<const uint32_t> tokens) const;
  void append(Span<const uint32_t> tokens, float* logits, bool all);
  void run_block(Span<const uint32_t> tokens, hh_flash_mode mode);
  void embed(uint32_t index, uint32_t token);
  void attend(uint32_t layer, uint32_t index);
  void feed_forward(uint32_t layer, uint32_t tokens, hh_flash_mode mode);
  void choose_ahead(uint32_t layer);
  float* attended(uint32_t layer) { return attended_.get() + size_t{layer - first_ahead_} * d_model_; }
  void forget_attended();
  void project_head(uint32_t index, float* logits);
  void project(const float* x, std::initializer_list<Product> products, const std::function<void()>& first = [] {});
  // Of the block's token `index`, and into its place.
  void normalise(const Norm& norm, uint32_t index) const;
  void normalise(const Norm& norm, const float* x, float* out) const;
  void add_to_residual(uint32_t first, uint32_t last);
  uint32_t likeliest() const;
  bool ends_text(uint32_t token) const;

  const std::shared_ptr<const Pack> pack_;
  const ModelOptions options_;
  const ModelBudget budget_;
  const std::shared_ptr<const ModelWeights> weights_;
  const ModelConfig& config_;
  const uint32_t layers_;
  const uint32_t d_model_;
  const uint32_t block_tokens_;
  Session session_;
  KvCache cache_;
  Attention attention_;
  std::vector<Rotation> rotations_;  // of the block's tokens
  Buffers buffers_;
  Rounding rounding_;
  const uint32_t first_ahead_;
  AlignedArray<float> attended_;  // what attention added to the last token, [layers_ - first_ahead_][d_model]
  uint32_t position_ = 0;  // tokens in the cache
  Counters counters_{};
};

}  // namespace handheld::flash
