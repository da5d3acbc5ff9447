// Views of memory, owned aligned memory, and arithmetic that refuses to wrap.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "status.h"

namespace handheld::flash {

// A pointer and a length; owns nothing.
template <typename T>
class Span {
 public:
  constexpr Span() = default;
  constexpr Span(T* data, size_t size) : data_(data), size_(size) {}
  template <typename U, typename A>
  Span(const std::vector<U, A>& from) : data_(from.data()), size_(from.size()) {}

  constexpr T* data() const { return data_; }
  constexpr size_t size() const { return size_; }
  constexpr bool empty() const { return size_ == 0; }
  constexpr T& operator[](size_t index) const { return data_[index]; }
  constexpr T* begin() const { return data_; }
  constexpr T* end() const { return data_ + size_; }
  constexpr Span subspan(size_t first, size_t count) const { return {data_ + first, count}; }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

using Bytes = Span<const uint8_t>;

struct FreeMemory {
  void operator()(void* memory) const { std::free(memory); }
};

template <typename T>
using AlignedArray = std::unique_ptr<T[], FreeMemory>;

// 4 KiB suits direct reads and every vector width.
constexpr size_t kMemoryAlignment = 4096;

// Uninitialised and aligned; pages are not touched until they are used. Throws std::bad_alloc.
template <typename T>
AlignedArray<T> allocate_aligned(size_t count) {
  void* memory = nullptr;
  if (count > std::numeric_limits<size_t>::max() / sizeof(T)) throw std::bad_alloc();
  if (posix_memalign(&memory, kMemoryAlignment, count == 0 ? 1 : count * sizeof(T)) != 0) throw std::bad_alloc();
  return AlignedArray<T>(static_cast<T*>(memory));
}

// The same, on pages as large as the system gives: rows from all over a table cost fewer look-ups of addresses then.
template <typename T>
AlignedArray<T> allocate_large(size_t count) {
  constexpr size_t kLargePage = size_t{2} << 20;
  if (count < kLargePage / sizeof(T)) return allocate_aligned<T>(count);
  if (count > std::numeric_limits<size_t>::max() / sizeof(T)) throw std::bad_alloc();
  void* memory = nullptr;
  if (posix_memalign(&memory, kLargePage, count * sizeof(T)) != 0) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  // Only a wish: small pages hold the same.
  madvise(memory, count * sizeof(T), MADV_HUGEPAGE);
#endif
  return AlignedArray<T>(static_cast<T*>(memory));
}

inline uint64_t checked_add(uint64_t a, uint64_t b) {
  if (a > std::numeric_limits<uint64_t>::max() - b) fail(HH_FLASH_BAD_PACK, "A size in the pack overflows 64 bits.");
  return a + b;
}

inline uint64_t checked_mul(uint64_t a, uint64_t b) {
  if (b != 0 && a > std::numeric_limits<uint64_t>::max() / b) {
    fail(HH_FLASH_BAD_PACK, "A size in the pack overflows 64 bits.");
  }
  return a * b;
}

// `to` is a power of two.
constexpr uint64_t round_down(uint64_t value, uint64_t to) { return value & ~(to - 1); }
constexpr uint64_t round_up(uint64_t value, uint64_t to) { return round_down(value + to - 1, to); }

}  // namespace handheld::flash
