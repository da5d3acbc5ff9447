// Reads of bundles: into rows of a table, or into buffers for the caller to compute from. They are made by as many threads
// as reads are to be under way, or by two with an io_uring each. What is loaded while the caller computes needs no thread
// where there is an io_uring: the caller begins those reads and ends them, for a hand-over takes as long as a few reads do.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "file.h"
#include "format.h"
#include "memory.h"
#include "ring.h"

namespace handheld::flash {

// Which batches are read first. The caller waits for its loads before it takes streamed buffers, so a stream that was
// read first could hold every buffer that the loads need.
enum class Priority : uint8_t { kLoad, kStream, kPrefetch };

// A bundle wanted by a read, and the table row it goes to (unused when streaming).
struct Piece {
  uint32_t position;
  uint32_t row;
};

// One read call: the aligned range that covers `count` pieces from `first` on.
struct ReadJob {
  static constexpr uint8_t kWhole = 0xff;

  uint64_t offset = 0;
  uint8_t* buffer = nullptr;  // set once a streamed job has been read
  uint32_t bytes = 0;
  uint32_t first = 0;
  uint32_t count = 0;
  uint8_t part = kWhole;  // or the one part of each bundle that is read
};

// How ranges become reads.
struct ReadPolicy {
  uint32_t alignment = 1;
  uint32_t chunk_bytes = 0;      // largest read
  uint32_t merge_gap_bytes = 0;  // between the ranges of neighbours
  bool merge = true;
  bool bundled = true;
};

// The reads of one layer. Filled by the caller, then owned by the pool until they are finished.
class ReadBatch {
 public:
  // Never allocates again for up to `neurons` pieces.
  void reserve(uint32_t neurons, const ReadPolicy& policy, const BundleShape& shape);
  static uint64_t reserved_bytes(uint32_t neurons, const ReadPolicy& policy, const BundleShape& shape);

  // `rows` is the table's array, or null to stream. Pieces are added in ascending order of position.
  void begin(uint32_t layer, uint8_t* rows);
  void add(Piece piece) { pieces_.push_back(piece); }
  // Sets the row of every piece to row_of(position).
  template <typename RowOf>
  void place(RowOf row_of) {
    for (Piece& piece : pieces_) piece.row = row_of(piece.position);
  }
  void plan(const Layout& layout, const ReadPolicy& policy);

  bool streams() const { return rows_ == nullptr; }
  uint32_t layer() const { return layer_; }
  Span<const ReadJob> jobs() const { return jobs_; }
  Span<const Piece> pieces() const { return pieces_; }

 private:
  friend class ReaderPool;

  void plan_part(const Layout& layout, const ReadPolicy& policy, uint8_t part);
  bool awaited_are_there() const;

  uint32_t layer_ = 0;
  uint8_t* rows_ = nullptr;
  Priority priority_ = Priority::kLoad;
  std::vector<ReadJob> jobs_;
  std::vector<Piece> pieces_;

  // The rest is guarded by the pool's mutex.
  size_t claimed_ = 0;
  size_t finished_ = 0;
  size_t end_ = 0;  // jobs to claim; a failure brings it down to those that were
  Span<const ReadJob> awaited_;  // streamed jobs that the caller waits for
  hh_flash_status failure_ = HH_FLASH_OK;
  std::string message_;
};

struct ReadCounters {
  uint64_t reads = 0;
  uint64_t bytes_read = 0;
  uint64_t bytes_wanted = 0;
  uint64_t read_ns = 0;
  uint64_t busy_ns = 0;
};

class ReaderPool {
 public:
  // `layout` and `file` outlive the pool; so does `cancelled`, which makes reads fail with HH_FLASH_CANCELLED.
  // `reads`: how many may be under way, with a buffer of chunk_bytes each; small loads share buffers, kSharedBy each at
  // most. `uring`: through io_uring where there is one.
  ReaderPool(const File& file, const Layout& layout, const std::atomic<bool>& cancelled, uint32_t reads,
             uint32_t chunk_bytes, bool uring);
  ~ReaderPool();
  ReaderPool(const ReaderPool&) = delete;
  ReaderPool& operator=(const ReaderPool&) = delete;

  // Loads that go with a stream are submitted before it.
  void submit(ReadBatch& batch, Priority priority);

  // The same, but where there is an io_uring the calling thread begins what there is room for, and whoever waits for the
  // batch ends it.
  void begin(ReadBatch& batch, Priority priority);

  // Until all jobs of a batch that loads rows are done. Throws Error for the first one that failed; even then, none
  // is under way any more.
  void wait(ReadBatch& batch);

  // Until some jobs of a streamed batch are there. Throws Error when the batch failed.
  void wait_for(ReadBatch& batch, size_t first, size_t count);
  void release(ReadBatch& batch, size_t first, size_t count);

  // Gives up what was not read, waits for what is under way and takes all buffers back. Safe in any state.
  void drain(ReadBatch& batch) noexcept;

  uint32_t buffers() const { return count_; }
  ReadCounters counters();
  void reset_counters();

 private:
  // A job that is being read.
  struct Claim {
    ReadBatch* batch;
    ReadJob* job;
    uint8_t* buffer;
    bool shares;  // the buffer with others, which is freed after all of them
    uint64_t started;
  };

  void work();
  void work_with(Ring& ring, uint32_t depth);
  void stop();
  bool can_claim() const { return !stopping_ && !queue_.empty() && !free_buffers_.empty(); }
  Claim claim(ReadBatch& batch);
  Claim claim(ReadBatch& batch, uint8_t* buffer, bool shares);
  uint8_t* take_buffer();
  bool prepare(ReadBatch& batch, uint8_t*& room, uint32_t& left);
  void begin_here(ReadBatch& batch, std::unique_lock<std::mutex>& lock);
  void submit_here(std::unique_lock<std::mutex>& lock);
  void end_here(std::unique_lock<std::mutex>& lock);
  // `got`: bytes that are in the buffer already.
  void read(const Claim& claim, int64_t got) const;
  void place(const ReadBatch& batch, const ReadJob& job, const uint8_t* buffer) const;
  // Reads what is missing, with the mutex released, and takes note of the end.
  void finish(const Claim& claim, int64_t got, std::unique_lock<std::mutex>& lock);
  void throw_failure(const ReadBatch& batch) const;
  void give_up(ReadBatch& batch);

  const File& file_;
  const Layout& layout_;
  const std::atomic<bool>& cancelled_;
  const uint32_t count_;  // of buffers
  const uint32_t chunk_bytes_;
  AlignedArray<uint8_t> buffers_;
  std::vector<std::unique_ptr<Ring>> rings_;
  std::unique_ptr<Ring> callers_ring_;
  std::vector<Claim> callers_claims_;  // under way in it
  std::vector<uint8_t*> callers_buffers_;

  std::mutex mutex_;
  std::condition_variable work_;
  std::condition_variable done_;
  bool stopping_ = false;
  std::vector<uint8_t*> free_buffers_;
  std::vector<ReadBatch*> queue_;  // by priority
  ReadCounters counters_;
  uint32_t reading_ = 0;  // jobs under way
  uint64_t reading_since_ = 0;
  std::vector<std::thread> workers_;
};

}  // namespace handheld::flash
