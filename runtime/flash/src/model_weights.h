// The resident tensors of a whole model (`model.*`): all in one allocation, shared by the models of a pack.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "matrix.h"
#include "memory.h"
#include "model_config.h"
#include "norm.h"
#include "pack.h"

namespace handheld::flash {

struct AttentionWeights {
  Norm norm;
  Norm ffn_norm;
  Matrix q, k, v, o;
  // Null: none.
  const float* q_bias = nullptr;
  const float* k_bias = nullptr;
  const float* v_bias = nullptr;
  const float* o_bias = nullptr;
};

class ModelWeights {
 public:
  // Checks every tensor of the model; reads the configuration only. Throws Error(HH_FLASH_UNSUPPORTED) for a pack
  // without a model, HH_FLASH_BAD_PACK for tensors that are missing, unknown or do not fit.
  explicit ModelWeights(const Pack& pack);

  // Reads the tensors; pointers are valid from then on.
  void read(const Pack& pack);

  const ModelConfig& config() const { return config_; }
  uint64_t bytes() const { return bytes_; }

  const Matrix& embed() const { return embed_; }
  const Matrix& head() const { return head_.rows == 0 ? embed_ : head_; }
  const float* positions() const { return positions_; }          // [max_positions + position_offset, d_model]
  const float* inverse_frequencies() const { return inverse_frequencies_; }  // [head_dim / 2]
  const Norm& norm() const { return norm_; }
  const AttentionWeights& layer(uint32_t layer) const { return layers_[layer]; }

 private:
  // A tensor to read, and who points at it: one of the two.
  struct Wanted {
    TensorEntry tensor;
    const uint8_t** rows;
    const float** floats;
  };

  void want(const TensorEntry& tensor, const uint8_t** rows, const float** floats);
  void want_floats(const ResidentFile& file, const std::string& name, const std::vector<uint64_t>& shape, bool required,
                   const float** pointer);
  void want_matrix(const ResidentFile& file, const std::string& name, const MatrixKind& kind, uint32_t rows, uint32_t d,
                   Matrix& matrix);
  void want_norm(const ResidentFile& file, const std::string& name, uint32_t d, Norm& norm);
  void want_layer(const ResidentFile& file, uint32_t layer, uint32_t d);
  void refuse_unknown(const ResidentFile& file) const;

  ModelConfig config_;
  Matrix embed_;
  Matrix head_;
  const float* positions_ = nullptr;
  const float* inverse_frequencies_ = nullptr;
  Norm norm_;
  std::vector<AttentionWeights> layers_;

  std::vector<Wanted> wanted_;
  std::set<std::string> names_;
  uint64_t bytes_ = 0;
  AlignedArray<uint8_t> memory_;
};

}  // namespace handheld::flash
