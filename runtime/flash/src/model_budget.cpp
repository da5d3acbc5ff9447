#include <algorithm>
#include <string>

#include "model.h"

namespace handheld::flash {
namespace {

constexpr uint32_t kDefaultContext = 512;
constexpr uint64_t kModelBytes = 64 * 1024;  // its own objects and what the C library allocates around them

void require(bool holds, const std::string& message) {
  if (!holds) fail(HH_FLASH_INVALID_ARGUMENT, message);
}

void check(const Pack& pack, const ModelConfig& config, const ModelOptions& options) {
  require(options.mode <= HH_FLASH_SELECTED, "mode must be of hh_flash_mode.");
  require(options.kv_dtype == HH_FLASH_FP32 || options.kv_dtype == HH_FLASH_FP16,
          "kv_dtype must be HH_FLASH_FP32 or HH_FLASH_FP16.");
  require(options.read_ahead <= 1 && options.prefetch <= 1, "read_ahead and prefetch must be 0 or 1.");
  require(options.context_tokens <= config.max_positions,
          "context_tokens is " + std::to_string(options.context_tokens) + "; this model has positions for " +
              std::to_string(config.max_positions) + " tokens.");
  if (options.mode == HH_FLASH_SELECTED && pack.layout().selector == HH_FLASH_SELECTOR_NONE &&
      options.session.selector != HH_FLASH_SELECTOR_HOT) {
    fail(HH_FLASH_UNSUPPORTED, "This pack has no selector. Pack the model with one, set selector to "
                               "HH_FLASH_SELECTOR_HOT, or use dense or exact mode.");
  }
}

KvCache::Shape kv_shape(const Pack& pack, const ModelConfig& config, const ModelOptions& options) {
  check(pack, config, options);
  const uint32_t context =
      options.context_tokens == 0 ? std::min(kDefaultContext, config.max_positions) : options.context_tokens;
  return {pack.layout().layer_count(), config.kv_heads, config.head_dim, context,
          static_cast<hh_flash_dtype>(options.kv_dtype)};
}

}  // namespace

ModelOptions default_model_options() {
  ModelOptions options{};
  options.struct_bytes = sizeof options;
  options.mode = HH_FLASH_EXACT;
  options.kv_dtype = HH_FLASH_FP32;
  options.read_ahead = 1;
  options.prefetch = 1;
  options.session = default_options();
  options.session.window_tokens = HH_FLASH_WINDOW_UNLIMITED;
  options.session.pinned_neurons = HH_FLASH_PIN_MOST;
  options.session.miss_weight = 0.35f;
  return options;
}

ModelBudget::ModelBudget(const Pack& pack, const ModelWeights& weights, const ModelOptions& options)
    : kv(kv_shape(pack, weights.config(), options)),
      weight_bytes(weights.bytes()),
      kv_bytes(kv.bytes()),
      buffer_bytes(kModelBytes +
                   Model::buffer_bytes(weights.config(), pack.layout().shape.d_model, Model::block_tokens(options)) +
                   Attention::scratch_bytes(kv, options.session.compute_threads) +
                   Model::attended_bytes(options, pack.layout().layer_count(), pack.layout().shape.d_model)),
      session(pack, options.session, Model::block_tokens(options)),
      model_bytes(weight_bytes + kv_bytes + buffer_bytes),
      floor_bytes(model_bytes + session.floor_bytes) {}

void ModelBudget::require(uint64_t bytes) const {
  if (bytes >= floor_bytes) return;
  fail(HH_FLASH_BUDGET,
       "A budget of " + std::to_string(bytes) + " bytes is below the floor of " + std::to_string(floor_bytes) +
           " bytes for this model and these options: " + std::to_string(weight_bytes) +
           " for embedding, attention, norms and head, " + std::to_string(kv_bytes) + " for keys and values of " +
           std::to_string(kv.context_tokens) + " tokens (context_tokens, kv_dtype), " + std::to_string(buffer_bytes) +
           " for vectors of the tokens at hand, " + session.parts() + ". Raise the budget or lower those.");
}

}  // namespace handheld::flash
