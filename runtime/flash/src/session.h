// One text being decoded: the resident neurons, the threads and the budget they live in.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "compute_pool.h"
#include "feed_forward.h"
#include "kernels.h"
#include "memory.h"
#include "pack.h"
#include "reader.h"
#include "selector.h"
#include "table.h"

namespace handheld::flash {

using Options = hh_flash_session_options;

Options default_options();

// What a session of these options holds. Throws Error(HH_FLASH_INVALID_ARGUMENT) for options out of range.
struct Budget {
  // `block_tokens`: how many a call of Session::feed_forward_block may have.
  Budget(const Pack& pack, const Options& options, uint32_t block_tokens = 1);

  // Throws Error(HH_FLASH_BUDGET) when `bytes` is below the floor.
  void require(uint64_t bytes) const;
  // What the floor is made of, for messages.
  std::string parts() const;
  // Table rows of each layer under a budget of `bytes`, at most d_ff.
  std::vector<uint32_t> rows_per_layer(uint64_t bytes) const;

  ReadPolicy policy;
  uint64_t buffer_bytes = 0;       // of readers
  uint64_t tensor_bytes = 0;       // selectors and other tensors of the engine
  uint64_t bookkeeping_bytes = 0;
  uint64_t pinned_bytes = 0;
  uint64_t fixed_bytes = 0;  // all of these but the pinned rows
  uint64_t row_bytes = 0;    // a table row with its bookkeeping
  uint64_t floor_bytes = 0;

 private:
  uint32_t layers_;
  uint32_t d_ff_;
};

class Session {
 public:
  static constexpr uint32_t kNoLayer = UINT32_MAX;

  Session(std::shared_ptr<const Pack> pack, const Options& options, uint32_t block_tokens = 1);
  ~Session();

  // `next`: the layer that is computed after this one, in the same mode. Dense and exact mode then begin to read what
  // it will stream as soon as readers are free. kNoLayer: not known.
  void feed_forward(uint32_t layer, hh_flash_mode mode, const float* x, Span<const uint32_t> neurons, bool use_selector,
                    float* y, uint32_t next = kNoLayer);
  // Dense or exact mode for tokens that follow each other, x[tokens][d_model] -> y: what is not resident is read once for
  // all of them. What the last window_tokens needed stays, as if the last one did.
  void feed_forward_block(uint32_t layer, bool exact, const float* x, uint32_t tokens, float* y,
                          uint32_t next = kNoLayer);
  void prefetch(uint32_t layer, const float* x, Span<const uint32_t> neurons, bool use_selector);
  // The neurons, or the selector's choice for x, are what the next call of feed_forward computes, if that is one of the
  // layer, in selected mode and with the selector, which is not asked again.
  void choose_ahead(uint32_t layer, const float* x, Span<const uint32_t> neurons, bool use_selector);
  // Begins to read what was chosen ahead, if that has not begun. For any thread, while the caller waits for it.
  void begin_reads();
  // Gives up what is under way for layers to come.
  void drop_ahead();
  // The whole number; writes at most ids.size().
  size_t select(uint32_t layer, const float* x, Span<uint32_t> ids);
  size_t resident(uint32_t layer, Span<uint32_t> ids);
  void cancel() { cancelled_ = true; }
  void resume();
  void reset();
  hh_flash_stats stats();

  // What a whole model shares with the session it computes its feed-forward layers with.
  void require_not_cancelled() const;
  const Kernels& kernels() const { return kernels_; }
  bool rounds_inputs() const { return (options_.techniques & HH_FLASH_INT8_ACTIVATIONS) != 0; }
  bool rounds_hidden() const { return (options_.techniques & HH_FLASH_INT8_HIDDEN) != 0; }
  ComputePool& pool() { return compute_; }

 private:
  struct Counters {
    uint64_t layers_computed, neurons_selected, cache_hits, neurons_loaded, neurons_streamed, neurons_computed,
        prefetched, wait_ns, table_ns, select_ns, compute_ns;
  };

  void require_usable(uint32_t layer) const;
  void read_pinned();
  uint32_t computed_anyway(uint32_t layer) const;
  void choose(uint32_t layer, const float* x, Span<const uint32_t> neurons, bool use_selector);
  void admit_selected(uint32_t layer, uint64_t token, ReadBatch& batch);
  void finish_prefetch();
  void undo(ReadBatch& batch) noexcept;
  void submit(ReadBatch& batch, Priority priority);

  void plan_selected(uint32_t layer);
  void run_selected(uint32_t layer);
  void begin(const float* x, uint32_t tokens);
  void run_all(uint32_t layer, bool exact, uint32_t next);
  void plan_stream(uint32_t layer, ReadBatch& batch);
  void begin_stream(uint32_t layer);
  void stream_ahead(uint32_t layer);
  void load_and_compute(Table& table);
  void stream_and_compute(uint32_t layer, bool exact);
  void take_streamed(uint32_t layer, Span<const ReadJob> jobs, size_t from, size_t to);
  void keep_active(uint32_t layer, size_t count);
  void note_rows(uint32_t before, uint32_t after);
  // fill(first, last) sets those of bundles_ and positions_. `exact`: the threshold; null: every bundle counts.
  template <typename Fill>
  void compute(size_t count, Fill fill, const Activity* exact = nullptr);
  void compute_part(size_t first, size_t last, size_t part, const Activity* exact, const Following& following);
  template <typename Fill>
  void compute_all(uint32_t layer, bool exact, size_t count, Fill fill);
  // Parts of the arithmetic, each with a y of its own: which thread takes which part leaves no trace in the sum.
  size_t outputs() const { return kPartsPerThread * compute_.threads(); }
  void clear_output(size_t first, size_t last);
  void finish_output(uint32_t layer, float* y);
  void put_id(uint32_t layer, uint32_t position, size_t index, Span<uint32_t> ids) const;

  const std::shared_ptr<const Pack> pack_;
  const Layout& layout_;
  const Options options_;
  const uint32_t block_tokens_;  // block_ at most
  const Budget budget_;
  const Kernels& kernels_;
  std::atomic<bool> cancelled_{false};

  AlignedArray<uint8_t> rows_;
  std::vector<Table> tables_;
  std::vector<uint64_t> tokens_;  // of each layer so far
  ComputePool compute_;
  Selector selector_;

  ReadBatch loads_;
  ReadBatch stream_batches_[2];
  ReadBatch* streams_ = &stream_batches_[0];
  ReadBatch* ahead_ = &stream_batches_[1];  // what the next layer will stream
  bool streaming_ahead_ = false;
  bool chosen_ahead_ = false;   // for the layer of loads_, by loads_ and streams_
  bool reads_planned_ = false;  // of loads_ and streams_, and not begun
  ReadBatch prefetches_;
  bool prefetching_ = false;

  // Scratch of one call, sized once.
  std::vector<Rounding> roundings_;       // of the tokens of a block
  std::vector<Input> inputs_;             // [block_]
  uint32_t block_ = 1;                    // tokens of the call
  std::vector<uint8_t> marks_;            // by position or row; zeros but while they are used
  std::vector<uint32_t> chosen_;
  Span<const uint32_t> selected_;         // of chosen_: positions, ascending
  std::vector<uint32_t> overflow_;        // positions that no row was found for
  std::vector<const uint8_t*> bundles_;   // to compute
  std::vector<uint32_t> positions_;       // of bundles_, in exact mode
  std::vector<uint8_t> active_;           // of bundles_, in exact mode
  AlignedArray<float> partial_;           // y of each part, [outputs()][block_][d_model]
  bool fresh_output_ = true;              // partial_ holds nothing of this call
  uint64_t row_count_ = 0;
  uint64_t peak_rows_ = 0;
  Counters counters_{};

  // Last, so that its threads end before what they use.
  ReaderPool reader_;
};

}  // namespace handheld::flash
