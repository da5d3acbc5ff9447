// What a session has counted, and how it forgets.
#include "session.h"

namespace handheld::flash {

void Session::reset() {
  drop_ahead();
  if (prefetching_) {
    prefetching_ = false;
    undo(prefetches_);
  }
  row_count_ = 0;
  for (Table& table : tables_) {
    table.clear();
    table.reset_evictions();
    row_count_ += table.count();
  }
  peak_rows_ = row_count_;
  counters_ = {};
  reader_.reset_counters();
}

hh_flash_stats Session::stats() {
  const ReadCounters reads = reader_.counters();
  hh_flash_stats stats{};
  stats.struct_bytes = sizeof stats;
  stats.kernels = kernels_.id;
  stats.budget_bytes = options_.budget_bytes;
  stats.held_bytes = budget_.fixed_bytes + row_count_ * budget_.row_bytes;
  stats.held_peak_bytes = budget_.fixed_bytes + peak_rows_ * budget_.row_bytes;
  for (const Table& table : tables_) {
    stats.table_rows += table.capacity();
    stats.neurons_evicted += table.evictions();
  }
  stats.layers_computed = counters_.layers_computed;
  stats.reads = reads.reads;
  stats.bytes_read = reads.bytes_read;
  stats.bytes_wanted = reads.bytes_wanted;
  stats.neurons_selected = counters_.neurons_selected;
  stats.cache_hits = counters_.cache_hits;
  stats.neurons_loaded = counters_.neurons_loaded;
  stats.neurons_streamed = counters_.neurons_streamed;
  stats.neurons_computed = counters_.neurons_computed;
  stats.prefetched = counters_.prefetched;
  stats.wait_ns = counters_.wait_ns;
  stats.read_ns = reads.read_ns;
  stats.busy_ns = reads.busy_ns;
  stats.table_ns = counters_.table_ns;
  stats.select_ns = counters_.select_ns;
  stats.compute_ns = counters_.compute_ns;
  return stats;
}

}  // namespace handheld::flash
