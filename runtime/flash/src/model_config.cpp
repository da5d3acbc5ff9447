#include "model_config.h"

#include <cmath>
#include <set>
#include <utility>

#include "json.h"

namespace handheld::flash {
namespace {

constexpr const char* kWhere = "resident.safetensors, model.config";
constexpr uint32_t kMaxVocab = 1u << 24;
constexpr uint32_t kMaxHeads = 1u << 12;
constexpr uint32_t kMaxHeadDim = 1u << 12;
constexpr uint32_t kMaxPositions = 1u << 24;
constexpr uint32_t kMaxGroup = 1u << 17;
constexpr uint32_t kMaxQuerySize = 1u << 17;

[[noreturn]] void bad(const std::string& what) { bad_json(kWhere, what); }

struct Choice {
  const char* name;
  int value;
};

constexpr Choice kDtypes[] = {{"fp32", HH_FLASH_FP32}, {"fp16", HH_FLASH_FP16}, {"int8", HH_FLASH_INT8},
                              {"int4", HH_FLASH_INT4}, {"int4m", HH_FLASH_INT4M}};
constexpr Choice kArchitectures[] = {{"llama", 1}, {"opt", 0}};
constexpr Choice kNorms[] = {{"rms", 1}, {"layer", 0}};
constexpr Choice kPositions[] = {{"rope", 1}, {"learned", 0}};

template <size_t count>
int choice(JsonReader& reader, const std::string& key, const Choice (&choices)[count]) {
  const std::string given = reader.string();
  std::string allowed;
  for (const Choice& one : choices) {
    if (given == one.name) return one.value;
    allowed += allowed.empty() ? one.name : std::string(", ") + one.name;
  }
  bad(key + " is \"" + given + "\", allowed are " + allowed);
}

class Parser {
 public:
  explicit Parser(Bytes json) : reader_(json, kWhere) {}

  ModelConfig parse() {
    reader_.object([&](const std::string& key) {
      if (!seen_.insert(key).second) bad("two values of " + key);
      value(key);
    });
    reader_.expect_end();
    for (const char* key : {"architecture", "vocab", "heads", "kv_heads", "head_dim", "max_positions", "norm",
                            "norm_eps", "position"}) {
      if (seen_.count(key) == 0) bad(std::string(key) + " is missing");
    }
    check();
    return std::move(config_);
  }

 private:
  void value(const std::string& key) {
    if (key == "architecture") llama_ = choice(reader_, key, kArchitectures) != 0;
    else if (key == "norm") config_.rms = choice(reader_, key, kNorms) != 0;
    else if (key == "position") config_.rope = choice(reader_, key, kPositions) != 0;
    else if (key == "vocab") config_.vocab = integer(key, 1, kMaxVocab);
    else if (key == "heads") config_.heads = integer(key, 1, kMaxHeads);
    else if (key == "kv_heads") config_.kv_heads = integer(key, 1, kMaxHeads);
    else if (key == "head_dim") config_.head_dim = integer(key, 1, kMaxHeadDim);
    else if (key == "max_positions") config_.max_positions = integer(key, 1, kMaxPositions);
    else if (key == "position_offset") config_.position_offset = integer(key, 0, kMaxPositions);
    else if (key == "group_size") config_.group_size = integer(key, 32, kMaxGroup);
    else if (key == "norm_eps") config_.norm_eps = number(key);
    else if (key == "rope_scale") config_.rope_scale = number(key);
    else if (key == "eos") eos();
    else if (key == "dtypes") dtypes();
    else bad("unknown key " + key + "; this engine may be older than the pack");
  }

  uint32_t integer(const std::string& key, uint32_t least, uint32_t most) {
    const uint64_t given = reader_.integer();
    if (given < least || given > most) {
      bad(key + " is " + std::to_string(given) + ", allowed are " + std::to_string(least) + " to " +
          std::to_string(most));
    }
    return static_cast<uint32_t>(given);
  }

  float number(const std::string& key) {
    const double given = reader_.number();
    if (!(given >= 0) || given > 1e6) bad(key + " is out of range");
    return static_cast<float>(given);
  }

  void eos() {
    for (const uint64_t token : reader_.integers(HH_FLASH_MAX_EOS)) {
      if (token >= kMaxVocab) bad("eos is out of range");
      config_.eos.push_back(static_cast<uint32_t>(token));
    }
  }

  void dtypes() {
    reader_.object([&](const std::string& key) {
      for (MatrixKind* kind : {&config_.embed, &config_.attention, &config_.head}) {
        if (key != kind->name) continue;
        if (kind->given) bad("two dtypes of " + key);
        kind->given = true;
        kind->dtype = static_cast<hh_flash_dtype>(choice(reader_, key, kDtypes));
        return;
      }
      bad("dtypes has the unknown key " + key);
    });
  }

  void check() const {
    if (config_.rms != llama_ || config_.rope != llama_) {
      bad(llama_ ? "a llama has norm rms and position rope" : "an opt has norm layer and position learned");
    }
    if (config_.heads % config_.kv_heads != 0) bad("heads is not a multiple of kv_heads");
    if (config_.rope && config_.head_dim % 2 != 0) bad("head_dim is odd, which cannot be rotated");
    if (config_.query_size() > kMaxQuerySize || config_.query_size() % 32 != 0) {
      bad("heads times head_dim is " + std::to_string(config_.query_size()) +
          ", allowed are multiples of 32 up to " + std::to_string(kMaxQuerySize));
    }
    for (const uint32_t token : config_.eos) {
      if (token >= config_.vocab) bad("eos has token " + std::to_string(token) + ", which is not in the vocabulary");
    }
  }

  JsonReader reader_;
  ModelConfig config_;
  std::set<std::string> seen_;
  bool llama_ = false;
};

}  // namespace

ModelConfig parse_model_config(Bytes json) { return Parser(json).parse(); }

}  // namespace handheld::flash
