// What selected mode needs of a layer: which neurons, rows of the table for them, and their reads, in the call or ahead
// of it.
#include "session.h"

#include <utility>

#include "clock.h"

namespace handheld::flash {

// The first positions, which are pinned: the selector need not look at them.
uint32_t Session::computed_anyway(uint32_t layer) const {
  return (options_.techniques & HH_FLASH_COMPUTE_RESIDENT) != 0 ? tables_[layer].pinned() : 0;
}

void Session::choose(uint32_t layer, const float* x, Span<const uint32_t> neurons, bool use_selector) {
  const Stopwatch stopwatch(counters_.select_ns);
  if (use_selector) {
    const size_t count = selector_.select(layer, x, computed_anyway(layer), &tables_[layer], chosen_.data());
    selected_ = {chosen_.data(), count};
    return;
  }
  const LayerTensors& tensors = pack_->layer(layer);
  for (const uint32_t id : neurons) {
    if (id >= layout_.d_ff) {
      fail(HH_FLASH_INVALID_ARGUMENT, "There is no neuron " + std::to_string(id) + ": a layer has " +
                                          std::to_string(layout_.d_ff) + ".");
    }
  }
  for (const uint32_t id : neurons) marks_[tensors.position(id)] = 1;
  size_t count = 0;
  for (uint32_t position = 0; position < layout_.d_ff; ++position) {
    chosen_[count] = position;
    count += std::exchange(marks_[position], uint8_t{0});
  }
  selected_ = {chosen_.data(), count};
}

// Gives table rows to the selected neurons that have none, and plans their reads. What finds no row is in overflow_.
void Session::admit_selected(uint32_t layer, uint64_t token, ReadBatch& batch) {
  const Stopwatch stopwatch(counters_.table_ns);
  Table& table = tables_[layer];
  table.fetch();
  const uint32_t before = table.count();
  batch.begin(layer, table.row(0));
  overflow_.clear();
  if (options_.window_tokens == 0) table.expire(token, 0);
  for (const uint32_t position : selected_) {
    const uint32_t row = table.row_of(position);
    if (row == Table::kNone) {
      overflow_.push_back(position);
    } else {
      table.touch(row, token);
    }
  }
  counters_.neurons_selected += selected_.size();
  counters_.cache_hits += selected_.size() - overflow_.size();
  // Only now, as a neuron selected by this token must not lose its row to another of the same token.
  size_t kept = 0;
  for (const uint32_t position : overflow_) {
    if (table.admit(position, token, options_.window_tokens) == Table::kNone) {
      overflow_[kept++] = position;
    } else {
      batch.add({position, 0});
    }
  }
  overflow_.resize(kept);
  note_rows(before, table.count());
  const uint32_t grown = table.count();
  table.expire(token, options_.window_tokens);
  note_rows(grown, table.count());
  // Expiry moves rows, so they are looked up after it.
  batch.place([&](uint32_t position) { return table.row_of(position); });
  batch.plan(layout_, budget_.policy);
  counters_.neurons_loaded += batch.pieces().size();
}

void Session::plan_selected(uint32_t layer) {
  admit_selected(layer, ++tokens_[layer], loads_);
  streams_->begin(layer, nullptr);
  for (const uint32_t position : overflow_) streams_->add({position, 0});
  streams_->plan(layout_, budget_.policy);
  reads_planned_ = true;
}

void Session::begin_reads() {
  if (!std::exchange(reads_planned_, false)) return;
  reader_.begin(loads_, Priority::kLoad);
  reader_.begin(*streams_, Priority::kStream);
}

void Session::choose_ahead(uint32_t layer, const float* x, Span<const uint32_t> neurons, bool use_selector) {
  require_usable(layer);
  drop_ahead();
  // One that fails takes its rows back, and would move those that are planned now.
  if (prefetching_ && prefetches_.layer() == layer) finish_prefetch();
  choose(layer, x, neurons, use_selector);
  plan_selected(layer);
  counters_.prefetched += loads_.pieces().size();
  chosen_ahead_ = true;
}

void Session::prefetch(uint32_t layer, const float* x, Span<const uint32_t> neurons, bool use_selector) {
  require_usable(layer);
  drop_ahead();
  if (prefetching_) finish_prefetch();
  choose(layer, x, neurons, use_selector);
  admit_selected(layer, tokens_[layer] + 1, prefetches_);
  counters_.prefetched += prefetches_.pieces().size();
  prefetching_ = !prefetches_.pieces().empty();
  submit(prefetches_, Priority::kPrefetch);
}

void Session::finish_prefetch() {
  prefetching_ = false;
  const Stopwatch stopwatch(counters_.wait_ns);
  try {
    reader_.wait(prefetches_);
  } catch (const Error&) {
    // The call that needs these neurons reads them itself, and reports what fails then.
    undo(prefetches_);
  }
}

// Rows that a batch was to fill may hold anything: their neurons leave the table.
void Session::undo(ReadBatch& batch) noexcept {
  reader_.drain(batch);
  Table& table = tables_[batch.layer()];
  for (const Piece& piece : batch.pieces()) {
    table.remove(table.row_of(piece.position));
    --row_count_;
  }
}

size_t Session::select(uint32_t layer, const float* x, Span<uint32_t> ids) {
  require_usable(layer);
  const Stopwatch stopwatch(counters_.select_ns);
  const size_t count = selector_.select(layer, x, 0, nullptr, chosen_.data());
  for (size_t i = 0; i < count; ++i) put_id(layer, chosen_[i], i, ids);
  return count;
}

}  // namespace handheld::flash
