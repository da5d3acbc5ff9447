#include "session.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "clock.h"

namespace handheld::flash {
namespace {

constexpr double kPinnedShare = 0.8;  // of a table's rows, with HH_FLASH_PIN_MOST

using Bundles = Span<const uint8_t* const>;

const Following kNothingFollows = [] { return Bundles(); };

constexpr size_t kCachedBytes = 128 * 1024;  // of weights that a block's tokens are multiplied with in turn

Budget affordable_budget(const Pack& pack, const Options& options, uint32_t block_tokens) {
  Budget budget(pack, options, block_tokens);
  budget.require(options.budget_bytes);
  return budget;
}

}  // namespace

Session::Session(std::shared_ptr<const Pack> pack, const Options& options, uint32_t block_tokens)
    : pack_(std::move(pack)),
      layout_(pack_->layout()),
      options_(options),
      block_tokens_(block_tokens),
      budget_(affordable_budget(*pack_, options, block_tokens)),
      kernels_(find_kernels(static_cast<hh_flash_kernels>(options.kernels))),
      tokens_(layout_.layer_count(), 0),
      compute_(options.compute_threads),
      selector_(*pack_, kernels_, compute_, options),
      reader_(pack_->bundles(), layout_, cancelled_, options.reader_threads, budget_.policy.chunk_bytes,
              (options.techniques & HH_FLASH_IO_URING) != 0) {
  const std::vector<uint32_t> capacities = budget_.rows_per_layer(options.budget_bytes);
  size_t rows = 0;
  for (const uint32_t capacity : capacities) rows += capacity;
  rows_ = allocate_large<uint8_t>(rows * layout_.bundle_stride);
  tables_.reserve(capacities.size());
  uint8_t* at = rows_.get();
  for (const uint32_t capacity : capacities) {
    tables_.emplace_back(layout_.d_ff, capacity, layout_.bundle_stride, at);
    at += size_t{capacity} * layout_.bundle_stride;
  }
  for (ReadBatch* batch : {&loads_, streams_, ahead_, &prefetches_}) {
    batch->reserve(layout_.d_ff, budget_.policy, layout_.shape);
  }
  roundings_.assign(block_tokens_, Rounding(layout_.shape.d_model));
  inputs_.resize(block_tokens_);
  marks_.resize(layout_.d_ff);
  chosen_.resize(layout_.d_ff);
  active_.resize(layout_.d_ff);
  overflow_.reserve(layout_.d_ff);
  bundles_.resize(layout_.d_ff);
  positions_.resize(layout_.d_ff);
  partial_ = allocate_aligned<float>(outputs() * block_tokens * layout_.shape.d_model);
  read_pinned();
  reset();
}

Session::~Session() {
  cancel();
  drop_ahead();
  if (prefetching_) reader_.drain(prefetches_);
}

void Session::read_pinned() {
  for (uint32_t layer = 0; layer < layout_.layer_count(); ++layer) {
    Table& table = tables_[layer];
    // Where all fit, a window would only put off reading the rest.
    const uint32_t most = table.capacity() == layout_.d_ff
                              ? layout_.d_ff
                              : static_cast<uint32_t>(table.capacity() * kPinnedShare);
    const uint32_t pinned =
        options_.pinned_neurons == HH_FLASH_PIN_MOST ? most : std::min(options_.pinned_neurons, table.capacity());
    if (pinned == 0) continue;
    loads_.begin(layer, table.row(0));
    for (uint32_t position = 0; position < pinned; ++position) loads_.add({position, table.pin(position)});
    loads_.plan(layout_, budget_.policy);
    reader_.submit(loads_, Priority::kLoad);
    reader_.wait(loads_);
    row_count_ += pinned;
  }
  peak_rows_ = row_count_;
}

void Session::require_not_cancelled() const {
  if (cancelled_) fail(HH_FLASH_CANCELLED, "This was cancelled. hh_flash_session_resume or hh_flash_model_resume takes "
                                           "that back.");
}

void Session::require_usable(uint32_t layer) const {
  require_not_cancelled();
  if (layer >= layout_.layer_count()) {
    fail(HH_FLASH_INVALID_ARGUMENT, "There is no layer " + std::to_string(layer) + ": the pack has " +
                                        std::to_string(layout_.layer_count()) + ".");
  }
}

void Session::feed_forward(uint32_t layer, hh_flash_mode mode, const float* x, Span<const uint32_t> neurons,
                           bool use_selector, float* y, uint32_t next) {
  if (mode != HH_FLASH_SELECTED) return feed_forward_block(layer, mode == HH_FLASH_EXACT, x, 1, y, next);
  require_usable(layer);
  const ComputePool::Awake awake(compute_);
  if (!chosen_ahead_ || loads_.layer() != layer || !use_selector) {
    // Buffers that hold what nobody will ask for would be missing elsewhere.
    drop_ahead();
    if (prefetching_ && prefetches_.layer() == layer) finish_prefetch();
    choose(layer, x, neurons, use_selector);
    plan_selected(layer);
  }
  begin(x, 1);
  run_selected(layer);
  finish_output(layer, y);
}

void Session::feed_forward_block(uint32_t layer, bool exact, const float* x, uint32_t tokens, float* y,
                                 uint32_t next) {
  require_usable(layer);
  if (tokens == 0 || tokens > block_tokens_) fail(HH_FLASH_INVALID_ARGUMENT, "A block has too many tokens, or none.");
  const ComputePool::Awake awake(compute_);
  if (chosen_ahead_ || ahead_->layer() != layer) drop_ahead();
  if (prefetching_ && prefetches_.layer() == layer) finish_prefetch();
  begin(x, tokens);
  run_all(layer, exact, next);
  finish_output(layer, y);
}

void Session::begin(const float* x, uint32_t tokens) {
  block_ = tokens;
  const RowFormat rows = layout_.shape.row();
  for (uint32_t i = 0; i < tokens; ++i) {
    inputs_[i] = roundings_[i].input(kernels_, x + size_t{i} * rows.d, rows, rounds_inputs());
  }
  fresh_output_ = true;
}

void Session::run_selected(uint32_t layer) {
  chosen_ahead_ = false;
  try {
    load_and_compute(tables_[layer]);
    stream_and_compute(layer, false);
  } catch (...) {
    reads_planned_ = false;
    undo(loads_);
    reader_.drain(*streams_);
    throw;
  }
}

// Threads fill their own parts of the list: a list that one thread wrote would travel between caches.
template <typename Fill>
void Session::compute(size_t count, Fill fill, const Activity* exact) {
  if (count == 0) return;
  const Stopwatch stopwatch(counters_.compute_ns);
  const bool fresh = std::exchange(fresh_output_, false);
  const auto prepare = [&](size_t first, size_t last) {
    fill(first, last);
    if (exact != nullptr) std::fill(active_.data() + first, active_.data() + last, uint8_t{0});
    return Bundles(bundles_.data() + first, last - first);
  };
  const size_t parts = outputs();
  if (count * layout_.bundle_stride < kForkBytes) {
    if (fresh) clear_output(0, parts);
    prepare(0, count);
    compute_part(0, count, 0, exact, kNothingFollows);
  } else {
    // Whole batches, and where that leaves threads without any, whole kernel calls: rows that are left over are multiplied
    // one by one.
    const size_t batch = batch_size(layout_.shape, rounds_hidden());
    const size_t unit = count >= parts * batch ? batch : kRowsAtOnce;
    // From one and a half times the mean size down to half of it, so that threads end at about the same time.
    const auto start = [&](size_t part) {
      const size_t before = count * part * (3 * parts - part) / (2 * parts * parts);
      return std::min(count, (before + unit - 1) / unit * unit);
    };
    compute_.run_each(parts, [&](ComputePool::Parts& mine, uint32_t) {
      uint32_t next;
      // As the last batch of a part begins, so that only a thread's first part begins with what nobody has fetched.
      const auto take_next = [&] {
        next = mine.take();
        return next == ComputePool::kNoPart ? Bundles() : prepare(start(next), start(next + 1));
      };
      take_next();
      while (next != ComputePool::kNoPart) {
        const uint32_t part = next;
        if (fresh) clear_output(part, part + 1);
        if (start(part) == start(part + 1)) {
          take_next();
        } else {
          compute_part(start(part), start(part + 1), part, exact, std::ref(take_next));
        }
      }
    });
  }
  counters_.neurons_computed += count * block_;
}

// Bundles first .. last of the list with each token.
void Session::compute_part(size_t first, size_t last, size_t part, const Activity* exact, const Following& following) {
  // Few enough to stay in a thread's cache from token to token; whole batches.
  const size_t batch = batch_size(layout_.shape, rounds_hidden());
  const size_t cached = std::max(batch, kCachedBytes / layout_.bundle_stride / batch * batch);
  const size_t at_once = block_ == 1 ? last - first : cached;
  const uint32_t kept_from = block_ - std::min(block_, std::max(1u, options_.window_tokens));
  float* sums = partial_.get() + part * block_ * layout_.shape.d_model;
  for (size_t at = first; at < last; at += at_once) {
    const size_t end = std::min(at + at_once, last);
    const Bundles next(bundles_.data() + end, std::min(at_once, last - end));
    const Following next_follow = [next] { return next; };
    const Following& these_follow = end < last ? next_follow : following;
    for (uint32_t token = 0; token < block_; ++token) {
      Activity activity;
      if (exact != nullptr) {
        activity = *exact;
        activity.positions = positions_.data() + at;
        activity.active = token < kept_from ? nullptr : active_.data() + at;
      }
      compute_bundles(layout_.shape, kernels_, inputs_[token], {bundles_.data() + at, end - at},
                      exact == nullptr ? nullptr : &activity, rounds_hidden(), sums + token * layout_.shape.d_model,
                      token + 1 < block_ ? kNothingFollows : these_follow);
    }
  }
}

// In exact mode, active_ tells which counted.
template <typename Fill>
void Session::compute_all(uint32_t layer, bool exact, size_t count, Fill fill) {
  const Activity activity{layout_.layers[layer].threshold, pack_->layer(layer).importance};
  compute(count, fill, exact ? &activity : nullptr);
}

// Computes what is resident while the rest is being read, then the rest.
void Session::load_and_compute(Table& table) {
  const bool all = (options_.techniques & HH_FLASH_COMPUTE_RESIDENT) != 0;
  for (const Piece& piece : loads_.pieces()) marks_[piece.row] = 1;
  const size_t pinned = all ? table.pinned() : 0;
  size_t count = pinned;
  if (all) {
    // Without a branch, which could not be foreseen. There is room, as no more than `row` are listed before it.
    for (uint32_t row = table.pinned(); row < table.count(); ++row) {
      bundles_[count] = table.row(row);
      count += 1 - marks_[row];
    }
  } else {
    for (const uint32_t position : selected_) {
      const uint32_t row = table.row_of(position);
      if (row != Table::kNone && marks_[row] == 0) bundles_[count++] = table.row(row);
    }
  }
  for (const Piece& piece : loads_.pieces()) marks_[piece.row] = 0;
  // The first part of the arithmetic begins the reads, under the others.
  if (count == 0) begin_reads();
  compute(count, [&](size_t first, size_t last) {
    // Parts before the first that has neurons begin at 0 too.
    if (first == 0 && last != 0) begin_reads();
    for (size_t row = first; row < std::min(last, pinned); ++row) bundles_[row] = table.row(static_cast<uint32_t>(row));
  });
  {
    const Stopwatch stopwatch(counters_.wait_ns);
    const ComputePool::Awake resting(compute_, false);
    reader_.wait(loads_);
  }
  compute(loads_.pieces().size(), [&](size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) bundles_[i] = table.row(loads_.pieces()[i].row);
  });
}

void Session::run_all(uint32_t layer, bool exact, uint32_t next) {
  Table& table = tables_[layer];
  const uint64_t token = tokens_[layer] += block_;
  const uint32_t resident = table.count();
  begin_stream(layer);
  if (next != kNoLayer && next != layer) stream_ahead(next);
  counters_.neurons_selected += layout_.d_ff;
  counters_.cache_hits += resident;
  const auto rows = [&](size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) {
      bundles_[i] = table.row(static_cast<uint32_t>(i));
      positions_[i] = table.position_of(static_cast<uint32_t>(i));
    }
  };
  try {
    compute_all(layer, exact, resident, rows);
    for (uint32_t row = 0; exact && row < resident; ++row) {
      if (active_[row] != 0) table.touch(row, token);
    }
    stream_and_compute(layer, exact);
  } catch (...) {
    reader_.drain(*streams_);
    throw;
  }
  if (!exact) return;
  const uint32_t before = table.count();
  table.expire(token, options_.window_tokens);
  note_rows(before, table.count());
}

// Waking threads that read is part of what reads cost.
void Session::submit(ReadBatch& batch, Priority priority) {
  const Stopwatch stopwatch(counters_.wait_ns);
  reader_.submit(batch, priority);
}

void Session::plan_stream(uint32_t layer, ReadBatch& batch) {
  const Stopwatch stopwatch(counters_.table_ns);
  const Table& table = tables_[layer];
  batch.begin(layer, nullptr);
  if (table.count() < layout_.d_ff) {
    for (uint32_t position = table.pinned(); position < layout_.d_ff; ++position) {
      if (table.row_of(position) == Table::kNone) batch.add({position, 0});
    }
  }
  batch.plan(layout_, budget_.policy);
}

// What is not resident, unless it is being read already.
void Session::begin_stream(uint32_t layer) {
  if (streaming_ahead_) {
    streaming_ahead_ = false;
    std::swap(streams_, ahead_);
    return;
  }
  plan_stream(layer, *streams_);
  submit(*streams_, Priority::kStream);
}

// A layer's table changes only when that layer is computed, so what it will stream is known. It is read after what is
// streamed now, which therefore never waits for the buffers that it holds.
void Session::stream_ahead(uint32_t layer) {
  // A prefetch that fails takes its rows back, and the plan would lack them.
  if (prefetching_ && prefetches_.layer() == layer) return;
  plan_stream(layer, *ahead_);
  counters_.prefetched += ahead_->pieces().size();
  streaming_ahead_ = true;
  submit(*ahead_, Priority::kPrefetch);
}

void Session::drop_ahead() {
  if (std::exchange(streaming_ahead_, false)) reader_.drain(*ahead_);
  if (!std::exchange(chosen_ahead_, false)) return;
  reads_planned_ = false;
  undo(loads_);
  reader_.drain(*streams_);
}

// Half of the buffers are computed from while the other half is read into; always the same number, so that the order
// of additions, and with it the result, does not depend on timing.
void Session::stream_and_compute(uint32_t layer, bool exact) {
  const size_t step = std::max<size_t>(1, reader_.buffers() / 2);
  const size_t all = streams_->jobs().size();
  for (size_t first = 0; first < all; first += step) {
    const Span<const ReadJob> jobs = streams_->jobs().subspan(first, std::min(step, all - first));
    {
      const Stopwatch stopwatch(counters_.wait_ns);
      const ComputePool::Awake resting(compute_, false);
      reader_.wait_for(*streams_, first, jobs.size());
    }
    const size_t count = jobs[jobs.size() - 1].first + jobs[jobs.size() - 1].count - jobs[0].first;
    counters_.neurons_streamed += count;
    compute_all(layer, exact, count, [&](size_t from, size_t to) { take_streamed(layer, jobs, from, to); });
    if (exact) keep_active(layer, count);
    const Stopwatch stopwatch(counters_.wait_ns);
    reader_.release(*streams_, first, jobs.size());
  }
}

// Bundles from .. to of those that the jobs have read, which follow each other.
void Session::take_streamed(uint32_t layer, Span<const ReadJob> jobs, size_t from, size_t to) {
  BundleOffsets offset_of(layout_, layer);
  const size_t skipped = jobs[0].first;
  for (const ReadJob& job : jobs) {
    const size_t last = std::min(to, job.first + job.count - skipped);
    for (size_t i = std::max(from, job.first - skipped); i < last; ++i) {
      const uint32_t position = streams_->pieces()[skipped + i].position;
      bundles_[i] = job.buffer + (offset_of(position) - job.offset);
      positions_[i] = position;
    }
  }
}

// Copies the streamed neurons that counted into the table, for the tokens to come.
void Session::keep_active(uint32_t layer, size_t count) {
  if (options_.window_tokens == 0) return;
  const Stopwatch stopwatch(counters_.table_ns);
  Table& table = tables_[layer];
  const uint32_t before = table.count();
  for (size_t i = 0; i < count; ++i) {
    if (active_[i] == 0) continue;
    const uint32_t row = table.admit(positions_[i], tokens_[layer], options_.window_tokens);
    if (row == Table::kNone) break;
    std::memcpy(table.row(row), bundles_[i], layout_.shape.content_bytes());
    ++counters_.neurons_loaded;
  }
  note_rows(before, table.count());
}

void Session::note_rows(uint32_t before, uint32_t after) {
  row_count_ = row_count_ - before + after;
  peak_rows_ = std::max(peak_rows_, row_count_);
}

void Session::clear_output(size_t first, size_t last) {
  const size_t size = size_t{block_} * layout_.shape.d_model;
  std::fill_n(partial_.get() + first * size, (last - first) * size, 0.0f);
}

void Session::finish_output(uint32_t layer, float* y) {
  const Stopwatch stopwatch(counters_.compute_ns);
  if (fresh_output_) clear_output(0, outputs());
  const uint32_t d_model = layout_.shape.d_model;
  const size_t size = size_t{block_} * d_model;
  const float* bias = pack_->layer(layer).down_bias;
  const auto add_up = [&](size_t first, size_t last) {
    std::copy(partial_.get() + first, partial_.get() + last, y + first);
    for (size_t part = 1; part < outputs(); ++part) {
      const float* partial = partial_.get() + part * size;
      for (size_t i = first; i < last; ++i) y[i] += partial[i];
    }
    if (bias == nullptr) return;
    for (size_t i = first; i < last; ++i) y[i] += bias[i % d_model];
  };
  const size_t parts = outputs() * size * sizeof(float) < kForkBytes ? 1 : compute_.threads();
  compute_.run(parts, [&](uint32_t part, uint32_t) { add_up(size * part / parts, size * (part + 1) / parts); });
  counters_.layers_computed += block_;
}

size_t Session::resident(uint32_t layer, Span<uint32_t> ids) {
  require_usable(layer);
  if (prefetching_ && prefetches_.layer() == layer) finish_prefetch();
  const Table& table = tables_[layer];
  for (uint32_t row = 0; row < table.count(); ++row) put_id(layer, table.position_of(row), row, ids);
  return table.count();
}

void Session::put_id(uint32_t layer, uint32_t position, size_t index, Span<uint32_t> ids) const {
  if (index < ids.size()) ids[index] = pack_->layer(layer).id(position);
}

// Reads that the cancellation ended are not to fail what comes now.
void Session::resume() {
  drop_ahead();
  cancelled_ = false;
}

}  // namespace handheld::flash
