// Turns a pack of feed-forward layers into one of a whole random model.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "writer.h"

namespace test {

struct Tensor {
  const char* dtype;  // of safetensors
  std::vector<uint64_t> shape;
  std::vector<uint8_t> bytes;
};

using Tensors = std::map<std::string, Tensor>;

constexpr uint32_t kVocab = 50;
constexpr uint32_t kPositions = 40;

// The tensors of a llama of 4 heads, or of an opt with biases, for the layers of `model`.
Tensors llama_tensors(const Model& model);
Tensors opt_tensors(const Model& model);

// Replaces resident.safetensors, and makes the pack's header fit it.
void set_resident(const Model& model, const Tensors& tensors);

Tensor text(const std::string& text);
std::string config_of(const Tensors& tensors);

}  // namespace test
