#include "feed_forward.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace handheld::flash {
namespace {

constexpr size_t kMostBatch = kColumnsAtOnce;

// Asks for a part that is needed some neurons later.
void fetch(const uint8_t* part, uint32_t bytes) {
  for (uint32_t at = 0; at < bytes; at += 64) __builtin_prefetch(part + at);
}

// Collects items until there are enough for one kernel call, and some after them that are being fetched.
template <typename Item, size_t at_once>
struct Queue {
  Item items[at_once + kRowsAtOnce];
  size_t count = 0;

  bool push(const Item& item) {
    items[count++] = item;
    return count == at_once + kRowsAtOnce;
  }
  void drop(size_t some) {
    std::copy(items + some, items + count, items);
    count -= some;
  }
};

class Layer {
 public:
  using Bundles = Span<const uint8_t* const>;

  Layer(const BundleShape& shape, const Kernels& kernels, const Input& x, const Activity* activity, bool rounds_hidden,
        float* y, const Following& following)
      : shape_(shape),
        kernels_(kernels),
        format_(shape.row()),
        part_bytes_(shape.part_bytes()),
        weight_bytes_(format_.weight_bytes()),
        up_offset_(shape.up_offset()),
        down_offset_(shape.down_offset()),
        bias_offset_(shape.bias_offset()),
        x_(x),
        activity_(activity),
        rounds_hidden_(rounds_hidden),
        in_integers_(rounds_hidden && sums_columns(format_)),
        batch_(batch_size(shape, rounds_hidden)),
        y_(y),
        following_(following) {}

  void run(Bundles bundles) {
    if (shape_.activation == HH_FLASH_RELU) {
      run_some(bundles);
    } else {
      run_all(bundles);
    }
  }

 private:
  struct Neuron {
    const uint8_t* bundle;
    size_t index;
    float value;  // the activated gate, then h
  };

  // Bundles that go through the stages together, and those that do so next.
  struct Batch {
    Bundles now;
    Bundles next;
  };

  Batch batch_at(Bundles bundles, size_t first) const {
    const size_t last = std::min(first + batch_, bundles.size());
    const Bundles next = last < bundles.size() ? bundles.subspan(last, std::min(batch_, bundles.size() - last))
                                               : following_();
    return {bundles.subspan(first, last - first), next};
  }

  // What is multiplied with x, in this order, and then what is only fetched.
  class Rows {
   public:
    void add(Bundles bundles, uint32_t offset) {
      for (const uint8_t* bundle : bundles) rows_[count_++] = bundle + offset;
    }
    void add_ahead(Bundles bundles) {
      const size_t some = std::min(kRowsAhead, bundles.size());
      add(bundles.subspan(0, some), 0);
      for (size_t i = some; i < kRowsAhead; ++i, ++count_) rows_[count_] = rows_[count_ - 1];
    }
    const uint8_t* const* at(size_t index) const { return rows_ + index; }

   private:
    const uint8_t* rows_[2 * kMostBatch + kRowsAhead];
    size_t count_ = 0;
  };

  // Of `columns` what the last stage begins with is fetched meanwhile.
  void dots(const Rows& rows, size_t first, size_t count, float* out, Bundles columns) const {
    for (size_t i = 0; i < count; i += kRowsAtOnce) {
      const size_t some = std::min(kRowsAtOnce, count - i);
      for (size_t c = i; c < std::min(i + some, columns.size()); ++c) {
        fetch(columns[c] + down_offset_, std::min(kLeadBytes, weight_bytes_));
        fetch(columns[c] + down_offset_ + weight_bytes_, 1);
      }
      flash::dots(kernels_, format_, rows.at(first + i), some, x_, out + i, rows.at(first + i + kRowsAhead));
    }
  }

  // In integers all columns are added at once while the next batch's first rows are fetched, otherwise some by some
  // while as many of its columns are.
  void add_columns(const Batch& batch, const float* values) const {
    const uint8_t* columns[kMostBatch];
    const uint8_t* next[kMostBatch];
    for (size_t i = 0; i < batch.now.size(); ++i) {
      columns[i] = batch.now[i] + down_offset_;
      next[i] = i < batch.next.size() ? batch.next[i] + (in_integers_ ? 0 : down_offset_) : columns[i];
    }
    accumulate(kernels_, format_, columns, batch.now.size(), values, rounds_hidden_, y_, next);
  }

  float hidden(const uint8_t* bundle, float gate, float up) const {
    if (shape_.up_bias) {
      float bias;
      std::memcpy(&bias, bundle + bias_offset_, sizeof bias);
      up += bias;
    }
    return shape_.gated ? gate * up : activate(shape_.activation, up);
  }

  // Every neuron has an h that is not zero: stage after stage over a batch, so that no stage waits for the one before.
  // With a threshold, only what is over it goes on to the last one.
  void run_all(Bundles bundles) {
    for (size_t first = 0; first < bundles.size(); first += batch_) {
      const Batch batch = batch_at(bundles, first);
      const size_t count = batch.now.size();
      float gates[kMostBatch];
      float values[kMostBatch];
      Rows rows;
      if (shape_.gated) rows.add(batch.now, 0);
      rows.add(batch.now, up_offset_);
      rows.add_ahead(batch.next);
      if (shape_.gated) dots(rows, 0, count, gates, {});
      dots(rows, shape_.gated ? count : 0, count, values, in_integers_ && activity_ == nullptr ? batch.now : Bundles());
      for (size_t i = 0; i < count; ++i) {
        const float gate = shape_.gated ? activate(shape_.activation, gates[i]) : 1;
        values[i] = hidden(batch.now[i], gate, values[i]);
      }
      if (activity_ != nullptr) {
        for (size_t i = 0; i < count; ++i) add_if_it_counts({batch.now[i], first + i, values[i]});
        continue;
      }
      add_columns(batch, values);
    }
    while (counted_.count != 0) flush_down();
  }

  // Each stage passes on the neurons that may still count, so that a ReLU's zeros cost neither an up row nor a down
  // column, and those under the threshold no down column. What is passed on is fetched, and used four neurons later.
  void run_some(Bundles bundles) {
    for (size_t first = 0; first < bundles.size(); first += batch_) {
      const Batch batch = batch_at(bundles, first);
      Rows rows;
      rows.add(batch.now, 0);
      rows.add_ahead(batch.next);
      float products[kMostBatch];
      dots(rows, 0, batch.now.size(), products, {});
      for (size_t i = 0; i < batch.now.size(); ++i) {
        Neuron neuron{batch.now[i], first + i, 1};
        if (!shape_.gated) {
          finish(neuron, products[i]);
          continue;
        }
        neuron.value = activate(shape_.activation, products[i]);
        if (neuron.value == 0) continue;
        fetch(neuron.bundle + up_offset_, part_bytes_);
        if (gated_.push(neuron)) flush_up();
      }
    }
    while (gated_.count != 0) flush_up();
    while (counted_.count != 0) flush_down();
  }

  void flush_up() {
    const size_t some = std::min(kRowsAtOnce, gated_.count);
    const uint8_t* rows[kRowsAtOnce] = {};
    float ups[kRowsAtOnce];
    for (size_t r = 0; r < some; ++r) rows[r] = gated_.items[r].bundle + up_offset_;
    flash::dots(kernels_, format_, rows, some, x_, ups, nullptr);
    for (size_t r = 0; r < some; ++r) finish(gated_.items[r], ups[r]);
    gated_.drop(some);
  }

  // From the up product to h, and on to the down column if it counts.
  void finish(Neuron neuron, float up) {
    neuron.value = hidden(neuron.bundle, neuron.value, up);
    add_if_it_counts(neuron);
  }

  void add_if_it_counts(const Neuron& neuron) {
    if (!counts(neuron)) return;
    fetch(neuron.bundle + down_offset_, part_bytes_);
    if (counted_.push(neuron)) flush_down();
  }

  bool counts(const Neuron& neuron) const {
    if (neuron.value == 0) return false;
    if (activity_ == nullptr) return true;
    const float importance =
        activity_->importance == nullptr ? 1.0f : activity_->importance[activity_->positions[neuron.index]];
    // Written so that a NaN counts and shows in the result.
    if (std::fabs(neuron.value) * importance <= activity_->threshold) return false;
    if (activity_->active != nullptr) activity_->active[neuron.index] = 1;
    return true;
  }

  void flush_down() {
    const size_t some = std::min(kColumnsAtOnce, counted_.count);
    const uint8_t* rows[kColumnsAtOnce];
    float values[kColumnsAtOnce];
    for (size_t r = 0; r < some; ++r) {
      rows[r] = counted_.items[r].bundle + down_offset_;
      values[r] = counted_.items[r].value;
    }
    accumulate(kernels_, format_, rows, some, values, rounds_hidden_, y_, nullptr);
    counted_.drop(some);
  }

  const BundleShape& shape_;
  const Kernels& kernels_;
  const RowFormat format_;
  // Looked up once: each takes as long as some of a row's arithmetic.
  const uint32_t part_bytes_;
  const uint32_t weight_bytes_;
  const uint32_t up_offset_;
  const uint32_t down_offset_;
  const uint32_t bias_offset_;
  const Input& x_;
  const Activity* activity_;
  const bool rounds_hidden_;
  const bool in_integers_;
  const size_t batch_;
  float* y_;
  const Following& following_;
  Queue<Neuron, kRowsAtOnce> gated_;
  Queue<Neuron, kColumnsAtOnce> counted_;
};

}  // namespace

// As many as the last stage adds up in integers, or two kernel calls, as one leaves the processor idle at its end, while sums
// are reduced, and many would be fetched too early for the cache.
size_t batch_size(const BundleShape& shape, bool rounds_hidden) {
  const RowFormat row = shape.row();
  if (!rounds_hidden || !sums_columns(row)) return 2 * kRowsAtOnce;
  return kColumnsAtOnce;
}

float activate(hh_flash_activation activation, float value) {
  // max(value, 0) would turn a NaN into 0.
  if (activation == HH_FLASH_RELU) return value < 0 ? 0 : value;
  return value / (1 + std::exp(-value));
}

void compute_bundles(const BundleShape& shape, const Kernels& kernels, const Input& x,
                     Span<const uint8_t* const> bundles, const Activity* activity, bool rounds_hidden, float* y,
                     const Following& following) {
  Layer(shape, kernels, x, activity, rounds_hidden, y, following).run(bundles);
}

}  // namespace handheld::flash
