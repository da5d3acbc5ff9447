// The resident neurons of one layer: rows of a preallocated array, found, inserted and removed in constant time.
//
// Rows 0 .. count are in use without holes: removing one moves the last row into its place. Rows that are not pinned
// form a list from the most to the least recently selected.
#pragma once

#include <cstdint>
#include <vector>

#include "memory.h"

namespace handheld::flash {

class Table {
 public:
  static constexpr uint32_t kNone = UINT32_MAX;
  static constexpr uint64_t kNeverExpires = UINT32_MAX;

  // `rows` has room for `capacity` rows of `stride` bytes and outlives the table.
  Table(uint32_t neurons, uint32_t capacity, uint32_t stride, uint8_t* rows);

  // Bookkeeping per neuron of the layer and per row of capacity.
  static constexpr uint64_t kBytesPerNeuron = sizeof(uint32_t);
  static constexpr uint64_t kBytesPerRow = 24;

  uint32_t count() const { return count_; }
  uint32_t capacity() const { return capacity_; }
  uint32_t pinned() const { return pinned_; }
  uint8_t* row(uint32_t row) const { return rows_ + size_t{row} * stride_; }
  uint32_t row_of(uint32_t position) const { return row_of_[position]; }
  uint32_t position_of(uint32_t row) const { return entries_[row].position; }

  // Adds a row that is never given up. All pinned rows come before any other.
  uint32_t pin(uint32_t position);

  // Asks for the bookkeeping of all rows that are not pinned: a token's rows are looked up in no order, and since the last
  // token weights have pushed it out of the caches.
  void fetch() const;

  // Marks a row as selected for `token`.
  void touch(uint32_t row, uint64_t token);

  // Gives a row to a neuron that has none: an expired one, else a free one, else that of the oldest token before
  // `token`; kNone when every row is pinned or needed for `token`. The caller fills the row.
  uint32_t admit(uint32_t position, uint64_t token, uint64_t window);

  // Removes all rows that were not selected in the last `window` tokens up to `token`, and none of `token` itself.
  void expire(uint64_t token, uint64_t window);

  void remove(uint32_t row);
  void clear();  // all but the pinned rows

  uint64_t evictions() const { return evictions_; }
  void reset_evictions() { evictions_ = 0; }

 private:
  // Of one row, together: what the rows of a token need is seldom in the cache.
  struct Entry {
    uint64_t last_used;
    uint32_t position;
    uint32_t next;
    uint32_t previous;
  };
  static_assert(sizeof(Entry) == kBytesPerRow);

  uint32_t oldest() const { return entries_[capacity_].previous; }
  bool expired(uint32_t row, uint64_t token, uint64_t window) const;
  void link_first(uint32_t row);
  void unlink(uint32_t row);
  void assign(uint32_t row, uint32_t position, uint64_t token);

  uint8_t* rows_;
  uint32_t stride_;
  uint32_t capacity_;
  uint32_t count_ = 0;
  uint32_t pinned_ = 0;
  uint64_t evictions_ = 0;
  std::vector<uint32_t> row_of_;
  // By row. A ring leads through the entry `capacity_`, which stands for no row: its next is the newest, its previous the
  // oldest.
  std::vector<Entry> entries_;
};

}  // namespace handheld::flash
