#include "model_weights.h"

namespace handheld::flash {
namespace {

constexpr const char* kConfig = "model.config";
constexpr uint64_t kMaxConfigBytes = 1u << 16;
constexpr uint64_t kTensorAlignment = 64;  // a cache line

ModelConfig read_config(const ResidentFile& file) {
  const auto found = file.tensors().find(kConfig);
  if (found == file.tensors().end()) {
    fail(HH_FLASH_UNSUPPORTED, "This pack holds feed-forward layers only: it has no model.config. Use a session, or pack "
                               "the whole model.");
  }
  const TensorEntry& tensor = found->second;
  if (tensor.dtype != "U8" || tensor.bytes > kMaxConfigBytes) file.bad("model.config is not a short text in U8");
  std::vector<uint8_t> json(static_cast<size_t>(tensor.bytes));
  file.read(tensor, json.data());
  return parse_model_config(json);
}

// The dtype that the configuration names, or that of a tensor of floats.
hh_flash_dtype dtype_of(const ResidentFile& file, const std::string& name, const MatrixKind& kind) {
  if (kind.given) return kind.dtype;
  const auto found = file.tensors().find(name);
  if (found == file.tensors().end()) file.bad("lacks " + name);
  if (found->second.dtype == "F32") return HH_FLASH_FP32;
  if (found->second.dtype == "F16") return HH_FLASH_FP16;
  file.bad(name + " is " + found->second.dtype + ", and model.config does not name the dtype of " + kind.name);
}

}  // namespace

ModelWeights::ModelWeights(const Pack& pack) {
  const ResidentFile file = pack.resident();
  config_ = read_config(file);
  names_.insert(kConfig);
  const Layout& layout = pack.layout();
  const uint32_t d = layout.shape.d_model;
  layers_.resize(layout.layer_count());
  want_matrix(file, "model.embed", config_.embed, config_.vocab, d, embed_);
  if (file.tensors().count("model.head") != 0) {
    want_matrix(file, "model.head", config_.head, config_.vocab, d, head_);
  }
  if (config_.rope) {
    want_floats(file, "model.rope_inv_freq", {config_.head_dim / 2}, true, &inverse_frequencies_);
  } else {
    const uint64_t positions = uint64_t{config_.max_positions} + config_.position_offset;
    want_floats(file, "model.positions", {positions, d}, true, &positions_);
  }
  want_norm(file, "model.norm", d, norm_);
  for (uint32_t layer = 0; layer < layout.layer_count(); ++layer) want_layer(file, layer, d);
  refuse_unknown(file);
}

void ModelWeights::want_layer(const ResidentFile& file, uint32_t layer, uint32_t d) {
  AttentionWeights& weights = layers_[layer];
  const std::string prefix = "model." + std::to_string(layer) + ".";
  want_norm(file, prefix + "attn_norm", d, weights.norm);
  want_norm(file, prefix + "ffn_norm", d, weights.ffn_norm);
  want_matrix(file, prefix + "q", config_.attention, config_.query_size(), d, weights.q);
  want_matrix(file, prefix + "k", config_.attention, config_.kv_size(), d, weights.k);
  want_matrix(file, prefix + "v", config_.attention, config_.kv_size(), d, weights.v);
  want_matrix(file, prefix + "o", config_.attention, d, config_.query_size(), weights.o);
  want_floats(file, prefix + "q_bias", {config_.query_size()}, false, &weights.q_bias);
  want_floats(file, prefix + "k_bias", {config_.kv_size()}, false, &weights.k_bias);
  want_floats(file, prefix + "v_bias", {config_.kv_size()}, false, &weights.v_bias);
  want_floats(file, prefix + "o_bias", {d}, false, &weights.o_bias);
}

void ModelWeights::want_norm(const ResidentFile& file, const std::string& name, uint32_t d, Norm& norm) {
  want_floats(file, name, {d}, true, &norm.weight);
  want_floats(file, name + "_bias", {d}, false, &norm.bias);
}

void ModelWeights::want_floats(const ResidentFile& file, const std::string& name, const std::vector<uint64_t>& shape,
                               bool required, const float** pointer) {
  names_.insert(name);
  if (const TensorEntry* tensor = file.find(name, "F32", shape, required)) {
    want(*tensor, nullptr, pointer);
  }
}

void ModelWeights::want_matrix(const ResidentFile& file, const std::string& name, const MatrixKind& kind, uint32_t rows,
                               uint32_t d, Matrix& matrix) {
  names_.insert(name);
  matrix.rows = rows;
  matrix.format = {dtype_of(file, name, kind), d, 0};
  if (matrix.format.grouped()) {
    const uint32_t group = config_.group_size;
    if ((group & (group - 1)) != 0 || d % group != 0) {
      file.bad("group_size of model.config is " + std::to_string(group) + ", which must be a power of two that divides "
               "the rows of " + name + " of " + std::to_string(d) + " weights");
    }
    matrix.format.group_size = group;
    want(*file.find(name, "U8", {rows, matrix.format.part_bytes()}, true), &matrix.data, nullptr);
  } else {
    const char* dtype = matrix.format.dtype == HH_FLASH_FP32 ? "F32" : "F16";
    want(*file.find(name, dtype, {rows, d}, true), &matrix.data, nullptr);
  }
}

void ModelWeights::want(const TensorEntry& tensor, const uint8_t** rows, const float** floats) {
  wanted_.push_back({tensor, rows, floats});
  bytes_ = checked_add(bytes_, round_up(tensor.bytes, kTensorAlignment));
}

// A bias or a norm that this engine does not apply would change every result.
void ModelWeights::refuse_unknown(const ResidentFile& file) const {
  for (const auto& [name, tensor] : file.tensors()) {
    if (name.compare(0, 6, "model.") != 0) continue;
    if (names_.count(name) == 0) file.bad("has " + name + ", which is no tensor of such a model");
  }
}

void ModelWeights::read(const Pack& pack) {
  const ResidentFile file = pack.resident();
  memory_ = allocate_large<uint8_t>(static_cast<size_t>(bytes_));
  uint8_t* at = memory_.get();
  for (const Wanted& wanted : wanted_) {
    file.read(wanted.tensor, at);
    if (wanted.rows != nullptr) {
      *wanted.rows = at;
    } else {
      *wanted.floats = reinterpret_cast<const float*>(at);
    }
    at += round_up(wanted.tensor.bytes, kTensorAlignment);
  }
}

}  // namespace handheld::flash
