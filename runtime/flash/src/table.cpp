#include "table.h"

#include <cstring>

namespace handheld::flash {

Table::Table(uint32_t neurons, uint32_t capacity, uint32_t stride, uint8_t* rows)
    : rows_(rows),
      stride_(stride),
      capacity_(capacity),
      row_of_(neurons, kNone),
      position_of_(capacity, kNone),
      last_used_(capacity, 0),
      next_(size_t{capacity} + 1, capacity),
      previous_(size_t{capacity} + 1, capacity) {}

void Table::link_first(uint32_t row) {
  const uint32_t second = next_[capacity_];
  next_[row] = second;
  previous_[row] = capacity_;
  previous_[second] = row;
  next_[capacity_] = row;
}

void Table::unlink(uint32_t row) {
  next_[previous_[row]] = next_[row];
  previous_[next_[row]] = previous_[row];
}

void Table::assign(uint32_t row, uint32_t position, uint64_t token) {
  row_of_[position] = row;
  position_of_[row] = position;
  last_used_[row] = token;
}

uint32_t Table::pin(uint32_t position) {
  const uint32_t row = count_++;
  pinned_ = count_;
  assign(row, position, 0);
  return row;
}

void Table::touch(uint32_t row, uint64_t token) {
  if (row < pinned_ || last_used_[row] == token) return;
  last_used_[row] = token;
  unlink(row);
  link_first(row);
}

bool Table::expired(uint32_t row, uint64_t token, uint64_t window) const {
  return row != capacity_ && window != kNeverExpires && last_used_[row] < token && last_used_[row] + window <= token;
}

uint32_t Table::admit(uint32_t position, uint64_t token, uint64_t window) {
  uint32_t row = oldest();
  if (expired(row, token, window) || (count_ == capacity_ && row != capacity_ && last_used_[row] < token)) {
    row_of_[position_of_[row]] = kNone;
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
  row_of_[position_of_[row]] = kNone;
  const uint32_t last = --count_;
  if (row == last) return;
  std::memcpy(this->row(row), this->row(last), stride_);
  assign(row, position_of_[last], last_used_[last]);
  next_[row] = next_[last];
  previous_[row] = previous_[last];
  next_[previous_[row]] = row;
  previous_[next_[row]] = row;
}

void Table::clear() {
  while (count_ > pinned_) remove(count_ - 1);
}

}  // namespace handheld::flash
