// Which neurons a token is expected to need, decided from what is resident alone.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "compute_pool.h"
#include "pack.h"
#include "table.h"
#include "ternary.h"

namespace handheld::flash {

// One of these serves all layers of a session; it holds scratch memory only.
class Selector {
 public:
  // Of the options: selector, select_share, miss_weight (gamma of arXiv 2412.01380), HH_FLASH_NEIGHBOURS,
  // HH_FLASH_GATE_FIRST, HH_FLASH_COMPUTE_RESIDENT.
  Selector(const Pack& pack, const Kernels& kernels, ComputePool& pool, const hh_flash_session_options& options);

  // Writes the positions of the selected neurons, ascending, and returns their number; `selected` has room for d_ff. Where a
  // threshold decides, the first `skipped` positions are left out, as they are computed anyway. `table` has what is
  // resident; nullptr: as if all were.
  size_t select(uint32_t layer, const float* x, uint32_t skipped, const Table* table, uint32_t* selected);

  static uint64_t scratch_bytes(const Layout& layout);

 private:
  // Sets scores_[first ..], weighed.
  void score_low_rank(const LayerTensors& tensors, const float* x, uint32_t first, const Misses& misses);
  float cut(const LayerTensors& tensors);
  size_t take(uint32_t first, float lowest, uint32_t* selected) const;
  size_t take_with_neighbours(const Misses& misses, uint32_t first, float lowest, uint32_t* selected);
  template <typename Use>
  void by_neighbourhood(uint32_t first, Use use) const;
  bool reads(const Misses& misses, uint32_t first, uint32_t last, float lowest) const;
  void complete_neighbours(const Misses& misses, uint32_t first, float lowest, uint32_t* scratch);

  const Pack& pack_;
  const Kernels& kernels_;
  ComputePool& pool_;
  hh_flash_selector kind_;
  float share_;
  float miss_weight_;
  uint32_t neighbourhood_;  // positions; 1: nothing but the neuron itself
  std::vector<float> scores_;
  std::vector<float> sorted_;
  std::vector<float> hidden_;  // low-rank: A x
  std::optional<TernaryScores> ternary_;
};

}  // namespace handheld::flash
