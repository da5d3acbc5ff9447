// The table against a plain model of it, over long random histories.
#include "table.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <random>

#include "check.h"

using handheld::flash::Table;

namespace {

constexpr uint32_t kNeurons = 50;
constexpr uint32_t kStride = 16;

struct Subject {
  explicit Subject(uint32_t capacity) : rows(size_t{capacity} * kStride), table(kNeurons, capacity, kStride, rows.data()) {}

  void fill(uint32_t position) { std::memset(table.row(table.row_of(position)), static_cast<int>(position), kStride); }

  // Every row is found from its neuron, every neuron from its row, and rows moved with their bytes.
  void check(const std::map<uint32_t, uint64_t>& expected) {
    CHECK(table.count() == expected.size());
    for (uint32_t position = 0; position < kNeurons; ++position) {
      const uint32_t row = table.row_of(position);
      CHECK((row != Table::kNone) == (expected.count(position) != 0));
      if (row == Table::kNone) continue;
      CHECK(row < table.count() && table.position_of(row) == position);
      CHECK(std::all_of(table.row(row), table.row(row) + kStride, [&](uint8_t byte) { return byte == position; }));
    }
  }

  std::vector<uint8_t> rows;
  Table table;
};

}  // namespace

TEST(table_equals_a_plain_window_of_tokens) {
  std::mt19937 random(4);
  for (const uint64_t window : {uint64_t{1}, uint64_t{3}, Table::kNeverExpires}) {
    for (const uint32_t capacity : {0u, 1u, 8u, 20u, kNeurons}) {
      Subject subject(capacity);
      const uint32_t pinned = std::min(capacity, 4u);
      std::map<uint32_t, uint64_t> expected;  // position -> last token; pinned ones never leave
      for (uint32_t position = 0; position < pinned; ++position) {
        subject.table.pin(position);
        subject.fill(position);
        expected[position] = UINT64_MAX;
      }
      for (uint64_t token = 1; token < 300; ++token) {
        std::vector<uint32_t> missing;
        for (uint32_t position = 0; position < kNeurons; ++position) {
          if (random() % 6 != 0) continue;
          const uint32_t row = subject.table.row_of(position);
          if (row == Table::kNone) {
            missing.push_back(position);
          } else {
            subject.table.touch(row, token);
            if (position >= pinned) expected[position] = token;
          }
        }
        for (const uint32_t position : missing) {
          const bool admitted = subject.table.admit(position, token, window) != Table::kNone;
          // What left is what the table says left; that it was the oldest is checked here.
          for (auto at = expected.begin(); at != expected.end();) {
            if (subject.table.row_of(at->first) != Table::kNone) {
              ++at;
              continue;
            }
            const uint64_t left = at->second;
            CHECK(left < token);
            for (const auto& [other, used] : expected) CHECK(used >= left);
            at = expected.erase(at);
          }
          if (admitted) {
            expected[position] = token;
            subject.fill(position);
          } else {
            CHECK(std::all_of(expected.begin(), expected.end(), [&](const auto& item) { return item.second >= token; }));
            CHECK(expected.size() == capacity);
          }
        }
        subject.table.expire(token, window);
        for (auto at = expected.begin(); at != expected.end();) {
          const bool old = window != Table::kNeverExpires && at->second != UINT64_MAX && at->second + window <= token;
          at = old ? expected.erase(at) : std::next(at);
        }
        subject.check(expected);
        if (token % 50 == 0 && subject.table.count() > pinned) {
          const uint32_t row = pinned + random() % (subject.table.count() - pinned);
          expected.erase(subject.table.position_of(row));
          subject.table.remove(row);
          subject.check(expected);
        }
      }
      subject.table.clear();
      CHECK(subject.table.count() == pinned);
    }
  }
}
