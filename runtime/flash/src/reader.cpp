#include "reader.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <numeric>

#include "clock.h"

namespace handheld::flash {
namespace {

struct Range {
  uint32_t first;
  uint32_t bytes;
};

constexpr uint32_t kRings = 2;            // one alone would take as long to begin and to end small reads as they take
constexpr size_t kSubmittedAtOnce = 8;  // the first are under way while the next are prepared
constexpr uint32_t kSharedBy = 4;       // small loads that share a buffer, so that more of them are under way
constexpr size_t kBegunFirst = 2;       // the device is at work on these while the caller prepares the rest

// What to read of a bundle, from its start. The last part takes the bias along.
Range wanted(const BundleShape& shape, uint8_t part) {
  if (part == ReadJob::kWhole) return {0, shape.content_bytes()};
  const uint32_t skip = part * shape.part_bytes();
  const bool last = part + 1u == shape.parts();
  return {skip, last ? shape.content_bytes() - skip : shape.part_bytes()};
}

size_t max_jobs(uint32_t neurons, const ReadPolicy& policy, const BundleShape& shape) {
  return size_t{neurons} * (policy.bundled ? 1 : shape.parts());
}

}  // namespace

void ReadBatch::reserve(uint32_t neurons, const ReadPolicy& policy, const BundleShape& shape) {
  pieces_.reserve(neurons);
  jobs_.reserve(max_jobs(neurons, policy, shape));
}

uint64_t ReadBatch::reserved_bytes(uint32_t neurons, const ReadPolicy& policy, const BundleShape& shape) {
  return uint64_t{neurons} * sizeof(Piece) + max_jobs(neurons, policy, shape) * sizeof(ReadJob);
}

void ReadBatch::begin(uint32_t layer, uint8_t* rows) {
  layer_ = layer;
  rows_ = rows;
  jobs_.clear();
  pieces_.clear();
  claimed_ = finished_ = end_ = 0;
  awaited_ = {};
  failure_ = HH_FLASH_OK;
}

void ReadBatch::plan(const Layout& layout, const ReadPolicy& policy) {
  // Streamed bundles are computed from the buffer they were read into, so they are read whole.
  if (policy.bundled || streams()) {
    plan_part(layout, policy, ReadJob::kWhole);
  } else {
    for (uint8_t part = 0; part < layout.shape.parts(); ++part) plan_part(layout, policy, part);
  }
  end_ = jobs_.size();
}

void ReadBatch::plan_part(const Layout& layout, const ReadPolicy& policy, uint8_t part) {
  const size_t first_job = jobs_.size();
  const Range range = wanted(layout.shape, part);
  BundleOffsets offset_of(layout, layer_);
  for (size_t i = 0; i < pieces_.size(); ++i) {
    const uint64_t at = offset_of(pieces_[i].position) + range.first;
    const uint64_t first = round_down(at, policy.alignment);
    const uint64_t last = round_up(at + range.bytes, policy.alignment);
    if (policy.merge && part == ReadJob::kWhole && jobs_.size() > first_job) {
      ReadJob& job = jobs_.back();
      const uint64_t end = job.offset + job.bytes;
      const bool close = first <= end + policy.merge_gap_bytes;
      if (close && last - job.offset <= policy.chunk_bytes) {
        job.bytes = static_cast<uint32_t>(last - job.offset);
        ++job.count;
        continue;
      }
    }
    jobs_.push_back({first, nullptr, static_cast<uint32_t>(last - first), static_cast<uint32_t>(i), 1, part});
  }
}

bool ReadBatch::awaited_are_there() const {
  return std::all_of(awaited_.begin(), awaited_.end(), [](const ReadJob& job) { return job.buffer != nullptr; });
}

ReaderPool::ReaderPool(const File& file, const Layout& layout, const std::atomic<bool>& cancelled, uint32_t reads,
                       uint32_t chunk_bytes, bool uring)
    : file_(file),
      layout_(layout),
      cancelled_(cancelled),
      count_(reads),
      chunk_bytes_(chunk_bytes),
      buffers_(allocate_aligned<uint8_t>(size_t{reads} * chunk_bytes)) {
  queue_.reserve(4);  // a session's batches
  free_buffers_.reserve(reads);
  for (uint32_t i = 0; i < reads; ++i) free_buffers_.push_back(buffers_.get() + size_t{i} * chunk_bytes);
  const uint32_t depth = (reads + kRings - 1) / kRings;
  for (uint32_t i = 0; uring && i < kRings; ++i) {
    if (auto ring = Ring::open(depth)) rings_.push_back(std::move(ring));
  }
  if (!rings_.empty()) callers_ring_ = Ring::open(kSharedBy * reads);
  callers_claims_.reserve(kSharedBy * size_t{reads});
  callers_buffers_.reserve(reads);
  workers_.reserve(reads + kRings);
  try {
    for (const auto& ring : rings_) workers_.emplace_back([this, &ring, depth] { work_with(*ring, depth); });
    for (uint32_t i = 0; rings_.empty() && i < reads; ++i) workers_.emplace_back([this] { work(); });
  } catch (...) {
    stop();
    throw;
  }
}

ReaderPool::~ReaderPool() { stop(); }

void ReaderPool::stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
}

void ReaderPool::submit(ReadBatch& batch, Priority priority) {
  if (batch.jobs_.empty()) return;
  batch.priority_ = priority;
  std::unique_lock<std::mutex> lock(mutex_);
  const auto later = [&](const ReadBatch* waiting) { return waiting->priority_ > priority; };
  queue_.insert(std::find_if(queue_.begin(), queue_.end(), later), &batch);
  lock.unlock();
  work_.notify_one();
}

void ReaderPool::begin(ReadBatch& batch, Priority priority) {
  if (callers_ring_ != nullptr) {
    std::unique_lock<std::mutex> lock(mutex_);
    begin_here(batch, lock);
    if (batch.claimed_ == batch.end_) return;
  }
  submit(batch, priority);
}

void ReaderPool::begin_here(ReadBatch& batch, std::unique_lock<std::mutex>& lock) {
  uint8_t* room = nullptr;
  uint32_t left = 0;
  for (size_t prepared = 1; prepare(batch, room, left); ++prepared) {
    if (prepared == kBegunFirst) submit_here(lock);
  }
  submit_here(lock);
}

// The batch's next read, if there is room for it. Loads go to `room`, of which `left` bytes are free, or to a new buffer.
bool ReaderPool::prepare(ReadBatch& batch, uint8_t*& room, uint32_t& left) {
  if (batch.claimed_ == batch.end_ || callers_claims_.size() == kSharedBy * count_) return false;
  const uint32_t bytes = batch.jobs_[batch.claimed_].bytes;
  if (batch.streams() || bytes > left) {
    if (free_buffers_.empty()) return false;
    room = take_buffer();
    left = chunk_bytes_;
    if (!batch.streams()) callers_buffers_.push_back(room);
  }
  const Claim claimed = claim(batch, room, !batch.streams());
  room += bytes;
  left -= bytes;
  callers_ring_->prepare(file_.descriptor(), claimed.job->offset, claimed.buffer, bytes, callers_claims_.size());
  callers_claims_.push_back(claimed);
  return true;
}

void ReaderPool::submit_here(std::unique_lock<std::mutex>& lock) {
  lock.unlock();
  const uint32_t refused = callers_ring_->submit(0);
  lock.lock();
  for (uint32_t i = 0; i < refused; ++i) {
    const Claim claimed = callers_claims_.back();
    callers_claims_.pop_back();
    finish(claimed, 0, lock);
  }
}

void ReaderPool::end_here(std::unique_lock<std::mutex>& lock) {
  size_t under_way = callers_claims_.size();
  while (under_way != 0) {
    lock.unlock();
    // Some at a time: to be woken for each would take as long as reading.
    callers_ring_->submit(static_cast<uint32_t>((under_way + 3) / 4));
    lock.lock();
    uint64_t tag;
    int64_t got;
    for (; callers_ring_->pop(tag, got); --under_way) finish(callers_claims_[tag], got, lock);
  }
  callers_claims_.clear();
  free_buffers_.insert(free_buffers_.end(), callers_buffers_.begin(), callers_buffers_.end());
  callers_buffers_.clear();
  if (can_claim()) work_.notify_one();
}

void ReaderPool::throw_failure(const ReadBatch& batch) const {
  if (batch.failure_ != HH_FLASH_OK) fail(batch.failure_, batch.message_);
}

void ReaderPool::wait(ReadBatch& batch) {
  std::unique_lock<std::mutex> lock(mutex_);
  end_here(lock);
  done_.wait(lock, [&] { return batch.finished_ == batch.end_; });
  throw_failure(batch);
}

void ReaderPool::wait_for(ReadBatch& batch, size_t first, size_t count) {
  std::unique_lock<std::mutex> lock(mutex_);
  end_here(lock);
  batch.awaited_ = Span<const ReadJob>(batch.jobs_).subspan(first, count);
  done_.wait(lock, [&] { return batch.failure_ != HH_FLASH_OK || batch.awaited_are_there(); });
  batch.awaited_ = {};
  throw_failure(batch);
}

void ReaderPool::release(ReadBatch& batch, size_t first, size_t count) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = first; i < first + count; ++i) {
      free_buffers_.push_back(batch.jobs_[i].buffer);
      batch.jobs_[i].buffer = nullptr;
    }
  }
  work_.notify_one();
}

void ReaderPool::give_up(ReadBatch& batch) {
  batch.end_ = batch.claimed_;
  queue_.erase(std::remove(queue_.begin(), queue_.end(), &batch), queue_.end());
}

void ReaderPool::drain(ReadBatch& batch) noexcept {
  std::unique_lock<std::mutex> lock(mutex_);
  give_up(batch);
  end_here(lock);
  done_.wait(lock, [&] { return batch.finished_ == batch.end_; });
  for (ReadJob& job : batch.jobs_) {
    if (job.buffer == nullptr) continue;
    free_buffers_.push_back(job.buffer);
    job.buffer = nullptr;
  }
  lock.unlock();
  work_.notify_one();
}

ReadCounters ReaderPool::counters() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return counters_;
}

void ReaderPool::reset_counters() {
  const std::lock_guard<std::mutex> lock(mutex_);
  counters_ = {};
  reading_since_ = now_ns();
}

uint8_t* ReaderPool::take_buffer() {
  uint8_t* const buffer = free_buffers_.back();
  free_buffers_.pop_back();
  return buffer;
}

ReaderPool::Claim ReaderPool::claim(ReadBatch& batch) { return claim(batch, take_buffer(), false); }

ReaderPool::Claim ReaderPool::claim(ReadBatch& batch, uint8_t* buffer, bool shares) {
  ReadJob& job = batch.jobs_[batch.claimed_++];
  // What the caller reads itself is not in the queue.
  if (!queue_.empty() && queue_.front() == &batch && batch.claimed_ == batch.end_) queue_.erase(queue_.begin());
  const Claim claim{&batch, &job, buffer, shares, now_ns()};
  if (reading_++ == 0) reading_since_ = claim.started;
  return claim;
}

void ReaderPool::work() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    // A buffer is taken together with a job, so a job that was claimed always ends, and streams cannot lock up.
    work_.wait(lock, [&] { return stopping_ || can_claim(); });
    if (stopping_) return;
    const Claim claimed = claim(*queue_.front());
    // Each wakes the next, so that the thread that computes wakes one only.
    if (can_claim()) work_.notify_one();
    finish(claimed, 0, lock);
  }
}

void ReaderPool::work_with(Ring& ring, uint32_t depth) {
  std::vector<Claim> claims(depth);
  std::vector<uint32_t> free(depth);  // places in claims
  std::iota(free.begin(), free.end(), 0u);
  std::vector<uint32_t> prepared;
  prepared.reserve(depth);
  std::unique_lock<std::mutex> lock(mutex_);
  const auto end = [&](uint32_t place, int64_t got) {
    finish(claims[place], got, lock);
    free.push_back(place);
  };
  while (true) {
    if (free.size() == depth) {
      work_.wait(lock, [&] { return stopping_ || can_claim(); });
      if (stopping_) return;
    }
    prepared.clear();
    while (can_claim() && !free.empty() && prepared.size() < kSubmittedAtOnce) {
      const uint32_t place = free.back();
      free.pop_back();
      claims[place] = claim(*queue_.front());
      prepared.push_back(place);
      const ReadJob& job = *claims[place].job;
      ring.prepare(file_.descriptor(), job.offset, claims[place].buffer, job.bytes, place);
    }
    const bool more = can_claim();
    lock.unlock();
    if (more) work_.notify_one();
    // Ended some at a time: one by one, that would take as long as reading.
    const auto under_way = static_cast<uint32_t>(depth - free.size());
    const uint32_t refused = ring.submit(more && !free.empty() ? 0 : (under_way + 3) / 4);
    lock.lock();
    for (size_t i = prepared.size() - refused; i < prepared.size(); ++i) end(prepared[i], 0);
    uint64_t place;
    int64_t got;
    while (ring.pop(place, got)) end(static_cast<uint32_t>(place), got);
  }
}

void ReaderPool::finish(const Claim& claim, int64_t got, std::unique_lock<std::mutex>& lock) {
  ReadBatch& batch = *claim.batch;
  ReadJob& job = *claim.job;
  lock.unlock();
  hh_flash_status failure = HH_FLASH_OK;
  std::string message;
  try {
    read(claim, got);
  } catch (const Error& error) {
    failure = error.status();
    message = error.what();
  } catch (const std::exception& error) {
    failure = HH_FLASH_INTERNAL;
    message = error.what();
  }
  lock.lock();
  const uint64_t ended = now_ns();
  if (--reading_ == 0) counters_.busy_ns += ended - reading_since_;
  ++batch.finished_;
  if (failure == HH_FLASH_OK) {
    ++counters_.reads;
    counters_.bytes_read += job.bytes;
    counters_.bytes_wanted += uint64_t{job.count} * wanted(layout_.shape, job.part).bytes;
    counters_.read_ns += ended - claim.started;
  } else if (batch.failure_ == HH_FLASH_OK) {
    batch.failure_ = failure;
    batch.message_ = std::move(message);
    give_up(batch);
  }
  if (failure == HH_FLASH_OK && batch.streams()) {
    job.buffer = claim.buffer;
  } else if (!claim.shares) {
    free_buffers_.push_back(claim.buffer);
  }
  const bool awaited = !batch.awaited_.empty() && (batch.failure_ != HH_FLASH_OK || batch.awaited_are_there());
  if (awaited || batch.finished_ == batch.end_) done_.notify_all();
}

void ReaderPool::read(const Claim& claim, int64_t got) const {
  if (cancelled_) fail(HH_FLASH_CANCELLED, "The session was cancelled.");
  // Also where an io_uring gave less or failed: what is wrong is found and named here.
  if (got != claim.job->bytes) file_.read(claim.job->offset, claim.buffer, claim.job->bytes);
  if (!claim.batch->streams()) place(*claim.batch, *claim.job, claim.buffer);
}

void ReaderPool::place(const ReadBatch& batch, const ReadJob& job, const uint8_t* buffer) const {
  const Range range = wanted(layout_.shape, job.part);
  BundleOffsets offset_of(layout_, batch.layer_);
  for (uint32_t i = job.first; i < job.first + job.count; ++i) {
    const Piece piece = batch.pieces_[i];
    const uint64_t from = offset_of(piece.position) + range.first - job.offset;
    uint8_t* const row = batch.rows_ + size_t{piece.row} * layout_.bundle_stride;
    std::memcpy(row + range.first, buffer + from, range.bytes);
  }
}

}  // namespace handheld::flash
