#include "model.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "clock.h"

namespace handheld::flash {
namespace {

// Each read of a layer serves as many tokens of a prompt. More would save little: arithmetic is most of the time then.
constexpr uint32_t kBlockTokens = 16;

// In the first of so many parts of the layers, attention makes another text of what it is given: nothing is chosen before it
// there. SmolLM2-135M's perplexity with all layers chosen ahead is 5 % higher (docs/llm.md).
constexpr uint32_t kUnforeseenPart = 10;

ModelBudget affordable_budget(const Pack& pack, const ModelOptions& options) {
  const ModelWeights weights(pack);  // not read yet
  ModelBudget budget(pack, weights, options);
  budget.require(options.session.budget_bytes);
  return budget;
}

Options session_options(const ModelOptions& options, const ModelBudget& budget) {
  Options session = options.session;
  session.budget_bytes -= budget.model_bytes;
  // Where every neuron is needed in each token, a window would hold none longer than a pin does.
  const bool every = options.mode != HH_FLASH_SELECTED;
  if (every && session.pinned_neurons == HH_FLASH_PIN_MOST) session.pinned_neurons = HH_FLASH_PIN_ALL;
  return session;
}

}  // namespace

Model::Buffers::Buffers(const ModelConfig& config, uint32_t d_model, uint32_t block_tokens)
    : memory(allocate_aligned<float>(bytes(config, d_model, block_tokens) / sizeof(float))) {
  float* at = memory.get();
  const auto take = [&](size_t size) { return std::exchange(at, at + size); };
  x = take(size_t{block_tokens} * d_model);
  normed = take(size_t{block_tokens} * d_model);
  added = take(size_t{block_tokens} * d_model);
  q = take(config.query_size());
  mixed = take(config.query_size());
  k = take(config.kv_size());
  v = take(config.kv_size());
  logits = take(config.vocab);
}

uint64_t Model::Buffers::bytes(const ModelConfig& config, uint32_t d_model, uint32_t block_tokens) {
  const uint64_t own = 3 * uint64_t{block_tokens} * d_model;
  const uint64_t shared = 2 * uint64_t{config.query_size()} + 2 * uint64_t{config.kv_size()} + config.vocab;
  return sizeof(float) * (own + shared);
}

uint32_t Model::block_tokens(const ModelOptions& options) {
  const bool hot = options.mode == HH_FLASH_SELECTED && options.session.selector == HH_FLASH_SELECTOR_HOT;
  return hot ? 1 : kBlockTokens;
}

uint32_t Model::first_ahead(const ModelOptions& options, uint32_t layers) {
  const bool reads = options.mode == HH_FLASH_SELECTED && options.session.selector != HH_FLASH_SELECTOR_HOT;
  return options.prefetch == 1 && reads ? layers / kUnforeseenPart : layers;
}

uint64_t Model::attended_bytes(const ModelOptions& options, uint32_t layers, uint32_t d_model) {
  return uint64_t{layers - first_ahead(options, layers)} * d_model * sizeof(float);
}

uint64_t Model::buffer_bytes(const ModelConfig& config, uint32_t d_model, uint32_t block_tokens) {
  return Buffers::bytes(config, d_model, block_tokens) + block_tokens * Rotation::bytes(config.head_dim) +
         Rounding::bytes(std::max(d_model, config.query_size()));
}

Model::Model(std::shared_ptr<const Pack> pack, const ModelOptions& options)
    : pack_(std::move(pack)),
      options_(options),
      budget_(affordable_budget(*pack_, options)),
      weights_(pack_->model_weights()),
      config_(weights_->config()),
      layers_(pack_->layout().layer_count()),
      d_model_(pack_->layout().shape.d_model),
      block_tokens_(block_tokens(options)),
      session_(pack_, session_options(options, budget_), block_tokens_),
      cache_(budget_.kv),
      attention_(session_.kernels(), session_.pool(), cache_, config_.heads),
      rotations_(block_tokens_, Rotation(config_.head_dim)),
      buffers_(config_, d_model_, block_tokens_),
      rounding_(std::max(d_model_, config_.query_size())),
      first_ahead_(first_ahead(options, layers_)),
      attended_(allocate_aligned<float>(attended_bytes(options, layers_, d_model_) / sizeof(float))) {
  forget_attended();
}

void Model::require_tokens(Span<const uint32_t> tokens) const {
  if (tokens.empty()) fail(HH_FLASH_INVALID_ARGUMENT, "There is no token to decode: give at least one.");
  const uint32_t context = budget_.kv.context_tokens;
  if (tokens.size() > context - position_) {
    fail(HH_FLASH_INVALID_ARGUMENT, std::to_string(tokens.size()) + " tokens after the " + std::to_string(position_) +
                                        " so far are more than context_tokens, which is " + std::to_string(context) +
                                        ". Open the model with more, or truncate or reset it.");
  }
  for (const uint32_t token : tokens) {
    if (token >= config_.vocab) {
      fail(HH_FLASH_INVALID_ARGUMENT, "There is no token " + std::to_string(token) + ": the vocabulary has " +
                                          std::to_string(config_.vocab) + ".");
    }
  }
}

void Model::decode(Span<const uint32_t> tokens, float* logits, bool all) {
  const Stopwatch stopwatch(counters_.total_ns);
  append(tokens, logits, all);
}

void Model::append(Span<const uint32_t> tokens, float* logits, bool all) {
  require_tokens(tokens);
  const ComputePool::Awake awake(session_.pool());
  const uint32_t before = position_;
  // A selector chooses for one token. For many, reading everything once is quicker than each token's own choice, and
  // nothing is missed.
  const bool together = tokens.size() > 1 && block_tokens_ > 1;
  const auto own = static_cast<hh_flash_mode>(options_.mode);
  const hh_flash_mode mode = together && own == HH_FLASH_SELECTED ? HH_FLASH_EXACT : own;
  try {
    for (size_t first = 0; first < tokens.size(); first += block_tokens_) {
      const size_t some = std::min<size_t>(block_tokens_, tokens.size() - first);
      run_block(tokens.subspan(first, some), mode);
      for (uint32_t i = 0; i < some; ++i) {
        if (all) {
          project_head(i, logits + (first + i) * config_.vocab);
        } else if (first + i + 1 == tokens.size()) {
          project_head(i, logits);
        }
      }
    }
  } catch (...) {
    session_.drop_ahead();
    position_ = before;
    throw;
  }
}

void Model::generate(Span<const uint32_t> prompt, size_t max_new, hh_flash_token_callback on_token, void* user) {
  uint32_t token = 0;
  Span<const uint32_t> next = prompt;
  for (size_t i = 0; i < max_new; ++i) {
    {
      const Stopwatch stopwatch(counters_.total_ns);
      append(next, buffers_.logits, false);
      token = likeliest();
    }
    if (on_token(token, user) != 0 || ends_text(token)) return;
    next = {&token, 1};
  }
}

// Layer by layer, so that what a layer reads from storage serves all tokens of the block.
void Model::run_block(Span<const uint32_t> tokens, hh_flash_mode mode) {
  const uint32_t count = static_cast<uint32_t>(tokens.size());
  for (uint32_t i = 0; i < count; ++i) embed(i, tokens[i]);
  for (uint32_t layer = 0; layer < layers_; ++layer) {
    if (mode == HH_FLASH_SELECTED && layer >= first_ahead_) choose_ahead(layer);
    for (uint32_t i = 0; i < count; ++i) {
      session_.require_not_cancelled();
      attend(layer, i);
    }
    feed_forward(layer, count, mode);
  }
  position_ += count;
  counters_.tokens += count;
}

void Model::embed(uint32_t index, uint32_t token) {
  const Stopwatch stopwatch(counters_.attention_ns);
  float* const x = buffers_.x + size_t{index} * d_model_;
  copy_row(session_.kernels(), weights_->embed(), token, x);
  if (config_.rope) {
    rotations_[index].set(position_ + index, weights_->inverse_frequencies(), config_.rope_scale);
    return;
  }
  const float* row = weights_->positions() + (size_t{position_} + index + config_.position_offset) * d_model_;
  for (uint32_t i = 0; i < d_model_; ++i) x[i] += row[i];
}

void Model::attend(uint32_t layer, uint32_t index) {
  const Stopwatch stopwatch(counters_.attention_ns);
  const AttentionWeights& weights = weights_->layer(layer);
  const Buffers& b = buffers_;
  const float* const normed = b.normed + size_t{index} * d_model_;
  normalise(weights.norm, index);
  project(normed,
          {{&weights.q, weights.q_bias, b.q}, {&weights.k, weights.k_bias, b.k}, {&weights.v, weights.v_bias, b.v}},
          [this] { session_.begin_reads(); });
  if (config_.rope) {
    rotations_[index].apply(b.q, config_.heads);
    rotations_[index].apply(b.k, config_.kv_heads);
  }
  cache_.store(layer, position_ + index, b.k, b.v);
  attention_.attend(layer, position_ + index + 1, b.q, b.mixed);
  float* const added = b.added + size_t{index} * d_model_;
  project(b.mixed, {{&weights.o, weights.o_bias, added}});
  if (layer >= first_ahead_) std::copy_n(added, d_model_, attended(layer));
  add_to_residual(index, index + 1);
  normalise(weights.ffn_norm, index);
}

void Model::feed_forward(uint32_t layer, uint32_t tokens, hh_flash_mode mode) {
  // After a prompt in another mode, the first layer is not streamed again.
  const bool ahead = options_.read_ahead == 1 && (layer + 1 < layers_ || mode == options_.mode);
  const uint32_t next = ahead ? (layer + 1) % layers_ : Session::kNoLayer;
  if (mode == HH_FLASH_SELECTED) {
    session_.feed_forward(layer, HH_FLASH_SELECTED, buffers_.normed, {}, true, buffers_.added);
  } else {
    session_.feed_forward_block(layer, mode == HH_FLASH_EXACT, buffers_.normed, tokens, buffers_.added, next);
  }
  add_to_residual(0, tokens);
}

// What attention will add is taken to be what it added to the token before: an average of more would be closer, but
// shorter than any of them, and scores with it.
void Model::choose_ahead(uint32_t layer) {
  float* const x = buffers_.added;
  {
    const Stopwatch stopwatch(counters_.attention_ns);
    for (uint32_t i = 0; i < d_model_; ++i) x[i] = buffers_.x[i] + attended(layer)[i];
    normalise(weights_->layer(layer).ffn_norm, x, buffers_.normed);
  }
  session_.choose_ahead(layer, buffers_.normed, {}, true);
}

void Model::project_head(uint32_t index, float* logits) {
  const Stopwatch stopwatch(counters_.head_ns);
  normalise(weights_->norm(), index);
  const float* const normed = buffers_.normed + size_t{index} * d_model_;
  project(normed, {{&weights_->head(), nullptr, logits}});
}

void Model::project(const float* x, std::initializer_list<Product> products, const std::function<void()>& first) {
  const RowFormat& format = products.begin()->matrix->format;
  multiply(session_.kernels(), session_.pool(),
           rounding_.input(session_.kernels(), x, format, session_.rounds_inputs()), products, first);
}

void Model::normalise(const Norm& norm, uint32_t index) const {
  const size_t at = size_t{index} * d_model_;
  normalise(norm, buffers_.x + at, buffers_.normed + at);
}

void Model::normalise(const Norm& norm, const float* x, float* out) const {
  (config_.rms ? rms_norm : layer_norm)(norm, config_.norm_eps, x, d_model_, out);
}

void Model::add_to_residual(uint32_t first, uint32_t last) {
  for (size_t i = size_t{first} * d_model_; i < size_t{last} * d_model_; ++i) buffers_.x[i] += buffers_.added[i];
}

uint32_t Model::likeliest() const {
  const float* logits = buffers_.logits;
  uint32_t best = 0;
  for (uint32_t i = 1; i < config_.vocab; ++i) {
    if (!(logits[i] <= logits[best])) best = i;
  }
  if (std::isfinite(logits[best])) return best;
  fail(HH_FLASH_BAD_PACK, "The model's logits are not finite: its weights or its config do not fit together. Pack it "
                          "again from its checkpoint.");
}

bool Model::ends_text(uint32_t token) const {
  return std::find(config_.eos.begin(), config_.eos.end(), token) != config_.eos.end();
}

void Model::truncate(size_t tokens) {
  if (tokens > position_) {
    fail(HH_FLASH_INVALID_ARGUMENT, "The text has " + std::to_string(position_) + " tokens and cannot be shortened to " +
                                        std::to_string(tokens) + ".");
  }
  position_ = static_cast<uint32_t>(tokens);
}

void Model::forget_attended() { std::fill_n(attended_.get(), size_t{layers_ - first_ahead_} * d_model_, 0.0f); }

void Model::reset() {
  session_.reset();
  forget_attended();
  position_ = 0;
  counters_ = {};
}

hh_flash_decode_stats Model::stats() {
  hh_flash_decode_stats stats{};
  stats.struct_bytes = sizeof stats;
  stats.position = position_;
  stats.tokens = counters_.tokens;
  stats.weights_bytes = budget_.weight_bytes;
  stats.kv_bytes = budget_.kv_bytes;
  stats.total_ns = counters_.total_ns;
  stats.attention_ns = counters_.attention_ns;
  stats.head_ns = counters_.head_ns;
  stats.session = session_.stats();
  stats.session.budget_bytes = options_.session.budget_bytes;
  stats.session.held_bytes += budget_.model_bytes;
  stats.session.held_peak_bytes += budget_.model_bytes;
  const uint64_t work = stats.attention_ns + stats.head_ns + stats.session.wait_ns + stats.session.select_ns +
                        stats.session.compute_ns;
  stats.overhead_ns = stats.total_ns - std::min(work, stats.total_ns);
  return stats;
}

}  // namespace handheld::flash
