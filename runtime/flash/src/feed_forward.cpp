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
  Layer(const BundleShape& shape, const Kernels& kernels, const Input& x, const Activity* activity, bool rounds_hidden,
        float* y)
      : shape_(shape),
        kernels_(kernels),
        format_(shape.row()),
        x_(x),
        activity_(activity),
        rounds_hidden_(rounds_hidden),
        batch_(batch_size(shape, rounds_hidden)),
        y_(y) {}

  void run(const uint8_t* const* bundles, size_t count) {
    if (shape_.activation == HH_FLASH_RELU) {
      run_some({bundles, count});
    } else {
      run_all({bundles, count});
    }
  }

 private:
  struct Neuron {
    const uint8_t* bundle;
    size_t index;
    float value;  // the activated gate, then h
  };

  using Bundles = Span<const uint8_t* const>;

  // A part of a batch's bundles, and of those that follow, for the kernels to fetch meanwhile.
  struct Rows {
    const uint8_t* now[kMostBatch];
    const uint8_t* following[kMostBatch];

    Rows(Bundles bundles, size_t first, size_t last, size_t batch, uint32_t offset) {
      for (size_t i = first; i < last; ++i) {
        now[i - first] = bundles[i] + offset;
        following[i - first] = bundles[std::min(i + batch, bundles.size() - 1)] + offset;
      }
    }
  };

  void dots(Bundles bundles, size_t first, size_t last, uint32_t offset, float* out) const {
    const Rows rows(bundles, first, last, batch_, offset);
    for (size_t i = 0; i < last - first; i += kRowsAtOnce) {
      const size_t some = std::min(kRowsAtOnce, last - first - i);
      flash::dots(kernels_, format_, rows.now + i, some, x_, out + i, rows.following + i);
    }
  }

  float hidden(const uint8_t* bundle, float gate, float up) const {
    if (shape_.up_bias) {
      float bias;
      std::memcpy(&bias, bundle + shape_.bias_offset(), sizeof bias);
      up += bias;
    }
    return shape_.gated ? gate * up : activate(shape_.activation, up);
  }

  // Every neuron has an h that is not zero: stage after stage over a batch, so that no stage waits for the one before.
  // With a threshold, only what is over it goes on to the last one.
  void run_all(Bundles bundles) {
    for (size_t first = 0; first < bundles.size(); first += batch_) {
      const size_t last = std::min(first + batch_, bundles.size());
      float gates[kMostBatch];
      float values[kMostBatch];
      if (shape_.gated) dots(bundles, first, last, shape_.gate_offset(), gates);
      dots(bundles, first, last, shape_.up_offset(), values);
      for (size_t i = first; i < last; ++i) {
        const float gate = shape_.gated ? activate(shape_.activation, gates[i - first]) : 1;
        values[i - first] = hidden(bundles[i], gate, values[i - first]);
      }
      if (activity_ != nullptr) {
        for (size_t i = first; i < last; ++i) add_if_it_counts({bundles[i], i, values[i - first]});
        continue;
      }
      const Rows rows(bundles, first, last, batch_, shape_.down_offset());
      accumulate(kernels_, format_, rows.now, last - first, values, rounds_hidden_, y_, rows.following);
    }
    while (counted_.count != 0) flush_down();
  }

  // Each stage passes on the neurons that may still count, so that a ReLU's zeros cost neither an up row nor a down
  // column, and those under the threshold no down column. What is passed on is fetched, and used four neurons later.
  void run_some(Bundles bundles) {
    for (size_t first = 0; first < bundles.size(); first += batch_) {
      const size_t last = std::min(first + batch_, bundles.size());
      float products[kMostBatch];
      dots(bundles, first, last, 0, products);
      for (size_t i = first; i < last; ++i) {
        Neuron neuron{bundles[i], i, 1};
        if (!shape_.gated) {
          finish(neuron, products[i - first]);
          continue;
        }
        neuron.value = activate(shape_.activation, products[i - first]);
        if (neuron.value == 0) continue;
        fetch(neuron.bundle + shape_.up_offset(), shape_.part_bytes());
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
    for (size_t r = 0; r < some; ++r) rows[r] = gated_.items[r].bundle + shape_.up_offset();
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
    fetch(neuron.bundle + shape_.down_offset(), shape_.part_bytes());
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
      rows[r] = counted_.items[r].bundle + shape_.down_offset();
      values[r] = counted_.items[r].value;
    }
    accumulate(kernels_, format_, rows, some, values, rounds_hidden_, y_, nullptr);
    counted_.drop(some);
  }

  const BundleShape& shape_;
  const Kernels& kernels_;
  RowFormat format_;
  const Input& x_;
  const Activity* activity_;
  const bool rounds_hidden_;
  const size_t batch_;
  float* y_;
  Queue<Neuron, kRowsAtOnce> gated_;
  Queue<Neuron, kColumnsAtOnce> counted_;
};

}  // namespace

// As many as the last stage adds up in integers, or two kernel calls, as one leaves the processor idle at its end, while sums
// are reduced, and many would be fetched too early for the cache.
size_t batch_size(const BundleShape& shape, bool rounds_hidden) {
  const RowFormat row = shape.row();
  if (!rounds_hidden || !sums_columns(row)) return 2 * kRowsAtOnce;
  // Of bytes, more would have left the cache before the last stage.
  return row.dtype == HH_FLASH_INT8 ? kColumnsAtOnce / 2 : kColumnsAtOnce;
}

float activate(hh_flash_activation activation, float value) {
  // max(value, 0) would turn a NaN into 0.
  if (activation == HH_FLASH_RELU) return value < 0 ? 0 : value;
  return value / (1 + std::exp(-value));
}

void compute_bundles(const BundleShape& shape, const Kernels& kernels, const Input& x, const uint8_t* const* bundles,
                     size_t count, const Activity* activity, bool rounds_hidden, float* y) {
  Layer(shape, kernels, x, activity, rounds_hidden, y).run(bundles, count);
}

}  // namespace handheld::flash
