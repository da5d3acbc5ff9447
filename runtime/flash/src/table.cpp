#include "table.h"

#include <cstring>

namespace handheld::flash {

Table::Table(uint32_t neurons, uint32_t capacity, uint32_t stride, uint8_t* rows)
    : rows_(rows),
      stride_(stride),
      capacity_(capacity),
      row_of_(neurons, kNone),
      entries_(size_t{capacity} + 1, Entry{0, kNone, capacity, capacity}) {}

void Table::link_first(uint32_t row) {
  const uint32_t second = entries_[capacity_].next;
  entries_[row].next = second;
  entries_[row].previous = capacity_;
  entries_[second].previous = row;
  entries_[capacity_].next = row;
}

void Table::unlink(uint32_t row) {
  const Entry& entry = entries_[row];
  entries_[entry.previous].next = entry.next;
  entries_[entry.next].previous = entry.previous;
}

void Table::assign(uint32_t row, uint32_t position, uint64_t token) {
  row_of_[position] = row;
  entries_[row].position = position;
  entries_[row].last_used = token;
}

uint32_t Table::pin(uint32_t position) {
  const uint32_t row = count_++;
  pinned_ = count_;
  assign(row, position, 0);
  return row;
}

void Table::fetch() const {
  const auto* const first = reinterpret_cast<const uint8_t*>(entries_.data() + pinned_);
  const auto* const last = reinterpret_cast<const uint8_t*>(entries_.data() + count_);
  for (const uint8_t* at = first; at < last; at += 64) __builtin_prefetch(at);
}

void Table::touch(uint32_t row, uint64_t token) {
  if (row < pinned_ || entries_[row].last_used == token) return;
  entries_[row].last_used = token;
  unlink(row);
  link_first(row);
}

bool Table::expired(uint32_t row, uint64_t token, uint64_t window) const {
  if (row == capacity_ || window == kNeverExpires) return false;
  const uint64_t last_used = entries_[row].last_used;
  return last_used < token && last_used + window <= token;
}

uint32_t Table::admit(uint32_t position, uint64_t token, uint64_t window) {
  uint32_t row = oldest();
  if (expired(row, token, window) || (count_ == capacity_ && row != capacity_ && entries_[row].last_used < token)) {
    row_of_[entries_[row].position] = kNone;
    unlink(row);
    ++evictions_;
  } else if (count_ < capacity_) {
    row = count_++;
  } else {
    return kNone;
  }
  assign(row, position, token);
  link_first(row);
  return row;
}

void Table::expire(uint64_t token, uint64_t window) {
  while (expired(oldest(), token, window)) {
    remove(oldest());
    ++evictions_;
  }
}

void Table::remove(uint32_t row) {
  unlink(row);
  row_of_[entries_[row].position] = kNone;
  const uint32_t last = --count_;
  if (row == last) return;
  std::memcpy(this->row(row), this->row(last), stride_);
  const Entry moved = entries_[last];
  assign(row, moved.position, moved.last_used);
  entries_[row].next = moved.next;
  entries_[row].previous = moved.previous;
  entries_[moved.previous].next = row;
  entries_[moved.next].previous = row;
}

void Table::clear() {
  while (count_ > pinned_) remove(count_ - 1);
}

}  // namespace handheld::flash
