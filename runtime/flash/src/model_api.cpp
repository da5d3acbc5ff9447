// The C interface to whole models.
#include <algorithm>

#include "boundary.h"
#include "model.h"

using handheld::flash::fail;
using handheld::flash::guarded;
using handheld::flash::Model;
using handheld::flash::ModelBudget;
using handheld::flash::ModelConfig;
using handheld::flash::ModelWeights;
using handheld::flash::require_pointers;
using handheld::flash::require_size;

struct hh_flash_model {
  hh_flash_model(std::shared_ptr<const handheld::flash::Pack> pack, const hh_flash_model_options& options)
      : model(std::move(pack), options) {}
  Model model;
};

hh_flash_status hh_flash_pack_model_info(const hh_flash_pack* pack, hh_flash_model_info* info) {
  return guarded([&] {
    require_pointers(pack, info);
    require_size(*info);
    const ModelWeights weights(*pack->pack);
    const ModelConfig& config = weights.config();
    hh_flash_model_info out{};
    out.struct_bytes = sizeof out;
    out.vocab = config.vocab;
    out.max_positions = config.max_positions;
    out.heads = config.heads;
    out.kv_heads = config.kv_heads;
    out.head_dim = config.head_dim;
    out.eos_count = static_cast<uint32_t>(config.eos.size());
    std::copy(config.eos.begin(), config.eos.end(), out.eos);
    out.weights_bytes = weights.bytes();
    *info = out;
  });
}

void hh_flash_model_options_init(hh_flash_model_options* options) {
  if (options != nullptr) *options = handheld::flash::default_model_options();
}

hh_flash_status hh_flash_model_floor(const hh_flash_pack* pack, const hh_flash_model_options* options,
                                     uint64_t* floor_bytes) {
  return guarded([&] {
    require_pointers(pack, options, floor_bytes);
    require_size(*options);
    require_size(options->session);
    *floor_bytes = ModelBudget(*pack->pack, ModelWeights(*pack->pack), *options).floor_bytes;
  });
}

hh_flash_status hh_flash_model_open(const hh_flash_pack* pack, const hh_flash_model_options* options,
                                    hh_flash_model** model) {
  return guarded([&] {
    require_pointers(pack, options, model);
    require_size(*options);
    require_size(options->session);
    *model = new hh_flash_model(pack->pack, *options);
  });
}

void hh_flash_model_close(hh_flash_model* model) { delete model; }

hh_flash_status hh_flash_model_decode(hh_flash_model* model, const uint32_t* tokens, size_t count, float* logits) {
  return guarded([&] {
    require_pointers(model, tokens, logits);
    model->model.decode({tokens, count}, logits, false);
  });
}

hh_flash_status hh_flash_model_decode_all(hh_flash_model* model, const uint32_t* tokens, size_t count, float* logits) {
  return guarded([&] {
    require_pointers(model, tokens, logits);
    model->model.decode({tokens, count}, logits, true);
  });
}

hh_flash_status hh_flash_model_generate(hh_flash_model* model, const uint32_t* prompt, size_t count, size_t max_new,
                                        hh_flash_token_callback callback, void* user) {
  return guarded([&] {
    require_pointers(model, prompt);
    if (callback == nullptr) fail(HH_FLASH_INVALID_ARGUMENT, "The callback is null.");
    if (max_new == 0) fail(HH_FLASH_INVALID_ARGUMENT, "max_new is 0: generate at least one token.");
    model->model.generate({prompt, count}, max_new, callback, user);
  });
}

hh_flash_status hh_flash_model_truncate(hh_flash_model* model, size_t tokens) {
  return guarded([&] {
    require_pointers(model);
    model->model.truncate(tokens);
  });
}

hh_flash_status hh_flash_model_resident(hh_flash_model* model, uint32_t layer, uint32_t* neurons, size_t capacity,
                                        size_t* neuron_count) {
  return guarded([&] {
    require_pointers(model, neuron_count);
    if (capacity != 0) require_pointers(neurons);
    *neuron_count = model->model.resident(layer, {neurons, capacity});
  });
}

void hh_flash_model_cancel(hh_flash_model* model) {
  if (model != nullptr) model->model.cancel();
}

hh_flash_status hh_flash_model_resume(hh_flash_model* model) {
  return guarded([&] {
    require_pointers(model);
    model->model.resume();
  });
}

hh_flash_status hh_flash_model_reset(hh_flash_model* model) {
  return guarded([&] {
    require_pointers(model);
    model->model.reset();
  });
}

hh_flash_status hh_flash_model_stats(hh_flash_model* model, hh_flash_decode_stats* stats) {
  return guarded([&] {
    require_pointers(model, stats);
    require_size(*stats);
    *stats = model->model.stats();
  });
}
