// Scores of neurons from resident two-bit rows: what h is expected to be, times the neuron's importance.
#pragma once

#include <cstdint>
#include <vector>

#include "compute_pool.h"
#include "input.h"
#include "pack.h"
#include "table.h"

namespace handheld::flash {

// Neurons that have to be read, and what their scores count for.
struct Misses {
  const Table* table;  // null: nothing has to be
  float weight;

  bool has(uint32_t neuron) const { return table != nullptr && table->row_of(neuron) == Table::kNone; }
  float weigh(uint32_t neuron) const { return has(neuron) ? weight : 1; }
};

class TernaryScores {
 public:
  // Neurons whose gate has decided have this score. Others' are not negative.
  static constexpr float kLeftOut = -1;

  TernaryScores(const Pack& pack, const Kernels& kernels, ComputePool& pool, bool gate_first, bool computes_resident);

  // Sets scores[first ..], weighed. With gate_first and a positive threshold, gated neurons are left out whose gates keep
  // them under it whatever their up products are, within reason, and of those in memory, if they are computed in any case,
  // the gates alone are looked at: up rows are half of the work.
  void score(uint32_t layer, const float* x, uint32_t first, float threshold, const Misses& misses, float* scores);

  // Scores what the last call has left out of these neurons.
  void complete(const uint32_t* neurons, size_t count, const Misses& misses, float* scores);

  static uint64_t bytes(const Layout& layout);

 private:

  // What belongs to a layer's neurons beside their rows.
  struct Terms {
    const float* bias;        // null: none
    const float* noise;       // null: none
    const float* importance;  // null: 1
    hh_flash_activation activation;
    bool gated;

    float energy(uint32_t neuron, float gate, float up) const;
  };

  template <typename Run>
  void by_parts(size_t count, Run run);
  void multiply(const uint32_t* neurons, size_t count, uint32_t row, float* products) const;
  void multiply_gates(const uint32_t* neurons, size_t count);
  float finish(const uint32_t* neurons, size_t count, const Misses& misses, float* scores) const;

  const Pack& pack_;
  const Kernels& kernels_;
  ComputePool& pool_;
  const bool gate_first_;
  const bool computes_resident_;
  Rounding rounding_;
  std::vector<float> gates_;  // products of gate rows
  const QuantisedVector* input_ = nullptr;
  const uint8_t* rows_ = nullptr;
  Terms terms_{};
};

}  // namespace handheld::flash
