// `model.config` of a pack: what the engine must know of a model around its feed-forward layers.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "handheld/flash.h"
#include "memory.h"

namespace handheld::flash {

// How the matrices of one kind are stored, where their safetensors dtype is U8.
struct MatrixKind {
  const char* name;  // key of `dtypes`
  bool given = false;
  hh_flash_dtype dtype = HH_FLASH_FP32;
};

struct ModelConfig {
  uint32_t vocab = 0;
  uint32_t heads = 0;
  uint32_t kv_heads = 0;
  uint32_t head_dim = 0;
  uint32_t max_positions = 0;
  uint32_t position_offset = 0;  // of learned positions
  uint32_t group_size = 32;
  bool rms = false;   // else layer norm
  bool rope = false;  // else learned positions
  float norm_eps = 0;
  float rope_scale = 1;
  std::vector<uint32_t> eos;
  MatrixKind embed{"embed"};
  MatrixKind attention{"attention"};
  MatrixKind head{"head"};

  uint32_t query_size() const { return heads * head_dim; }
  uint32_t kv_size() const { return kv_heads * head_dim; }
};

// Throws Error(HH_FLASH_BAD_PACK) naming what is missing, unknown or out of range.
ModelConfig parse_model_config(Bytes json);

}  // namespace handheld::flash
