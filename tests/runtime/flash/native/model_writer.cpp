#include "model_writer.h"

#include <cmath>
#include <cstring>
#include <random>

#include "sha256.h"

namespace test {
namespace {

using namespace handheld::flash;

constexpr uint32_t kHeads = 4;
constexpr uint32_t kKvHeads = 2;
constexpr uint32_t kHeadDim = 24;  // less than a block of the kernels

class Random {
 public:
  Tensor tensor(std::vector<uint64_t> shape, float middle, float spread) {
    uint64_t count = 1;
    for (const uint64_t size : shape) count *= size;
    std::uniform_real_distribution<float> value(middle - spread, middle + spread);
    std::vector<float> values(count);
    for (float& v : values) v = value(random_);
    std::vector<uint8_t> bytes(count * sizeof(float));
    std::memcpy(bytes.data(), values.data(), bytes.size());
    return {"F32", std::move(shape), std::move(bytes)};
  }

 private:
  std::mt19937 random_{11};
};

void add_layer(Tensors& tensors, Random& random, const std::string& prefix, uint64_t d, bool biases) {
  const uint64_t q = kHeads * kHeadDim;
  const uint64_t kv = kKvHeads * kHeadDim;
  tensors[prefix + "attn_norm"] = random.tensor({d}, 1, 0.2f);
  tensors[prefix + "ffn_norm"] = random.tensor({d}, 1, 0.2f);
  tensors[prefix + "q"] = random.tensor({q, d}, 0, 0.3f);
  tensors[prefix + "k"] = random.tensor({kv, d}, 0, 0.3f);
  tensors[prefix + "v"] = random.tensor({kv, d}, 0, 0.3f);
  tensors[prefix + "o"] = random.tensor({d, q}, 0, 0.3f);
  if (!biases) return;
  tensors[prefix + "attn_norm_bias"] = random.tensor({d}, 0, 0.2f);
  tensors[prefix + "ffn_norm_bias"] = random.tensor({d}, 0, 0.2f);
  tensors[prefix + "q_bias"] = random.tensor({q}, 0, 0.2f);
  tensors[prefix + "k_bias"] = random.tensor({kv}, 0, 0.2f);
  tensors[prefix + "v_bias"] = random.tensor({kv}, 0, 0.2f);
  tensors[prefix + "o_bias"] = random.tensor({d}, 0, 0.2f);
}

Tensors make(const Model& model, const std::string& kind, bool biases) {
  Random random;
  Tensors tensors;
  const uint64_t d = model.layout.shape.d_model;
  tensors["model.config"] =
      text(R"({"vocab":50,"heads":4,"kv_heads":2,"head_dim":24,"max_positions":40,"norm_eps":1e-05,"eos":[3],)" + kind);
  tensors["model.embed"] = random.tensor({kVocab, d}, 0, 1);
  tensors["model.norm"] = random.tensor({d}, 1, 0.2f);
  for (uint32_t layer = 0; layer < model.layout.layer_count(); ++layer) {
    add_layer(tensors, random, "model." + std::to_string(layer) + ".", d, biases);
  }
  return tensors;
}

}  // namespace

Tensor text(const std::string& text) {
  return {"U8", {text.size()}, std::vector<uint8_t>(text.begin(), text.end())};
}

std::string config_of(const Tensors& tensors) {
  const std::vector<uint8_t>& bytes = tensors.at("model.config").bytes;
  return {bytes.begin(), bytes.end()};
}

Tensors llama_tensors(const Model& model) {
  Tensors tensors = make(model, R"("architecture":"llama","norm":"rms","position":"rope"})", false);
  std::vector<float> frequencies(kHeadDim / 2);
  for (uint32_t i = 0; i < frequencies.size(); ++i) {
    frequencies[i] = std::pow(10000.0f, -2.0f * static_cast<float>(i) / kHeadDim);
  }
  std::vector<uint8_t> bytes(frequencies.size() * sizeof(float));
  std::memcpy(bytes.data(), frequencies.data(), bytes.size());
  tensors["model.rope_inv_freq"] = {"F32", {frequencies.size()}, bytes};
  return tensors;
}

Tensors opt_tensors(const Model& model) {
  Tensors tensors =
      make(model, R"("architecture":"opt","norm":"layer","position":"learned","position_offset":2})", true);
  const uint64_t d = model.layout.shape.d_model;
  Random random;
  tensors["model.positions"] = random.tensor({kPositions + 2, d}, 0, 0.5f);
  tensors["model.head"] = random.tensor({kVocab, d}, 0, 0.5f);
  return tensors;
}

void set_resident(const Model& model, const Tensors& tensors) {
  std::string json = "{";
  std::vector<uint8_t> data;
  for (const auto& [name, tensor] : tensors) {
    std::string shape;
    for (const uint64_t size : tensor.shape) shape += (shape.empty() ? "" : ",") + std::to_string(size);
    json += (json.size() > 1 ? ",\"" : "\"") + name + "\":{\"dtype\":\"" + tensor.dtype + "\",\"shape\":[" + shape +
            "],\"data_offsets\":[" + std::to_string(data.size()) + "," +
            std::to_string(data.size() + tensor.bytes.size()) + "]}";
    data.insert(data.end(), tensor.bytes.begin(), tensor.bytes.end());
  }
  json += "}";
  const uint64_t size = json.size();
  std::vector<uint8_t> file(8 + json.size());
  std::memcpy(file.data(), &size, 8);
  std::copy(json.begin(), json.end(), file.begin() + 8);
  file.insert(file.end(), data.begin(), data.end());
  write_file(model.folder + "/resident.safetensors", file);

  std::vector<uint8_t> neurons = read_file(model.folder + "/neurons.bin");
  std::vector<uint8_t> header(neurons.begin(), neurons.begin() + kPageBytes);
  const uint64_t bytes = file.size();
  const Digest digest = sha256(Bytes(file.data(), file.size()));
  std::memcpy(header.data() + 56, &bytes, 8);
  std::memcpy(header.data() + 64, digest.data(), digest.size());
  seal(header);
  std::copy(header.begin(), header.end(), neurons.begin());
  write_file(model.folder + "/neurons.bin", neurons);
}

}  // namespace test
