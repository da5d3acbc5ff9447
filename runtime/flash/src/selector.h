// Which neurons a token is expected to need, decided from what is resident alone.
#pragma once

#include <cstdint>
#include <vector>

#include "compute_pool.h"
#include "input.h"
#include "memory.h"
#include "pack.h"
#include "table.h"

namespace handheld::flash {

// One of these serves all layers of a session; it holds scratch memory only.
class Selector {
 public:
  // `share`: 0 selects what scores above the pack's threshold, else that share of the neurons. `miss_weight`: what the
  // score of a neuron counts for that has to be read (gamma of arXiv 2412.01380). `neighbours`: that is not held against
  // those beside one that is read all the same.
  Selector(const Pack& pack, const Kernels& kernels, ComputePool& pool, hh_flash_selector kind, float share,
           float miss_weight, bool neighbours);

  // Writes the positions of the selected neurons, ascending, and returns their number; `selected` has room for d_ff. Where a
  // threshold decides, the first `skipped` positions are left out, as they are computed anyway. `table` has what is
  // resident; nullptr: as if all were.
  size_t select(uint32_t layer, const float* x, uint32_t skipped, const Table* table, uint32_t* selected);

  static uint64_t scratch_bytes(const Layout& layout);

 private:
  // Sets scores_[first ..].
  void score_low_rank(const LayerTensors& tensors, const float* x, uint32_t first);
  void score_ternary(const LayerTensors& tensors, const float* x, uint32_t first);
  void weigh_misses(const Table& table, uint32_t first);
  float cut(const LayerTensors& tensors);
  size_t take(uint32_t first, float lowest, uint32_t* selected) const;
  size_t take_with_neighbours(const Table& table, uint32_t first, float lowest, uint32_t* selected) const;

  const Pack& pack_;
  const Kernels& kernels_;
  ComputePool& pool_;
  hh_flash_selector kind_;
  float share_;
  float miss_weight_;
  uint32_t neighbourhood_;  // positions; 1: nothing but the neuron itself
  std::vector<float> scores_;
  std::vector<float> sorted_;
  std::vector<float> hidden_;    // low-rank: A x
  Rounding rounding_;            // ternary: x in int8
};

}  // namespace handheld::flash
