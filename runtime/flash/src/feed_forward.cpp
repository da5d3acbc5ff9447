#include "feed_forward.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace handheld::flash {
namespace {

// Collects items until there are enough for one kernel call.
template <typename Item>
struct Queue {
  Item items[kRowsAtOnce];
  size_t count = 0;

  bool push(const Item& item) {
    items[count++] = item;
    return count == kRowsAtOnce;
  }
};

class Layer {
 public:
  Layer(const BundleShape& shape, const Kernels& kernels, const float* x, const Activity* activity, float* y)
      : shape_(shape),
        kernels_(kernels),
        format_(shape.row()),
        x_(x),
        activity_(activity),
        y_(y) {}

  // Each stage takes four rows at a time and passes on those that may still count, so that a ReLU's zeros cost
  // neither an up row nor a down column.
  void run(const uint8_t* const* bundles, size_t count) {
    for (size_t i = 0; i < count; i += kRowsAtOnce) {
      const size_t some = std::min(kRowsAtOnce, count - i);
      Neuron block[kRowsAtOnce];
      for (size_t r = 0; r < some; ++r) block[r] = {bundles[i + r], i + r, 1};
      for (size_t r = 0; r < kRowsAtOnce; ++r) next_[r] = bundles[std::min(i + kRowsAtOnce + r, count - 1)];
      if (!shape_.gated) {
        up(block, some);
        continue;
      }
      float gates[kRowsAtOnce];
      dots(block, some, shape_.gate_offset(), gates);
      for (size_t r = 0; r < some; ++r) {
        block[r].value = activate(shape_.activation, gates[r]);
        if (block[r].value != 0 && gated_.push(block[r])) flush_up();
      }
    }
    flush_up();
    flush_down();
  }

 private:
  struct Neuron {
    const uint8_t* bundle;
    size_t index;
    float value;  // the activated gate, then h
  };

  // The same rows of the next block, for the kernels to fetch meanwhile; null where a ReLU may leave no need of them.
  const uint8_t* const* ahead(uint32_t offset, const uint8_t** rows) const {
    if (offset != 0 && shape_.activation == HH_FLASH_RELU) return nullptr;
    for (size_t r = 0; r < kRowsAtOnce; ++r) rows[r] = next_[r] + offset;
    return rows;
  }

  void dots(const Neuron* block, size_t count, uint32_t offset, float* out) const {
    const uint8_t* rows[kRowsAtOnce];
    const uint8_t* following[kRowsAtOnce];
    for (size_t r = 0; r < count; ++r) rows[r] = block[r].bundle + offset;
    kernels_.dots(format_, rows, count, x_, out, ahead(offset, following));
  }

  void flush_up() {
    if (gated_.count == 0) return;
    up(gated_.items, gated_.count);
    gated_.count = 0;
  }

  void up(Neuron* block, size_t count) {
    float ups[kRowsAtOnce];
    dots(block, count, shape_.up_offset(), ups);
    for (size_t r = 0; r < count; ++r) {
      float value = ups[r];
      if (shape_.up_bias) {
        float bias;
        std::memcpy(&bias, block[r].bundle + shape_.bias_offset(), sizeof bias);
        value += bias;
      }
      block[r].value = shape_.gated ? block[r].value * value : activate(shape_.activation, value);
      if (counts(block[r]) && counted_.push(block[r])) flush_down();
    }
  }

  bool counts(const Neuron& neuron) const {
    if (neuron.value == 0) return false;
    if (activity_ == nullptr) return true;
    const float importance =
        activity_->importance == nullptr ? 1.0f : activity_->importance[activity_->positions[neuron.index]];
    // Written so that a NaN counts and shows in the result.
    if (std::fabs(neuron.value) * importance <= activity_->threshold) return false;
    activity_->active[neuron.index] = 1;
    return true;
  }

  void flush_down() {
    if (counted_.count == 0) return;
    const uint8_t* rows[kRowsAtOnce];
    float values[kRowsAtOnce];
    for (size_t r = 0; r < counted_.count; ++r) {
      rows[r] = counted_.items[r].bundle + shape_.down_offset();
      values[r] = counted_.items[r].value;
    }
    const uint8_t* following[kRowsAtOnce];
    kernels_.accumulate(format_, rows, counted_.count, values, y_, ahead(shape_.down_offset(), following));
    counted_.count = 0;
  }

  const BundleShape& shape_;
  const Kernels& kernels_;
  RowFormat format_;
  const float* x_;
  const Activity* activity_;
  float* y_;
  const uint8_t* next_[kRowsAtOnce] = {};  // the bundles after those at hand
  Queue<Neuron> gated_;
  Queue<Neuron> counted_;
};

}  // namespace

float activate(hh_flash_activation activation, float value) {
  // max(value, 0) would turn a NaN into 0.
  if (activation == HH_FLASH_RELU) return value < 0 ? 0 : value;
  return value / (1 + std::exp(-value));
}

void compute_bundles(const BundleShape& shape, const Kernels& kernels, const float* x, const uint8_t* const* bundles,
                     size_t count, const Activity* activity, float* y) {
  Layer(shape, kernels, x, activity, y).run(bundles, count);
}

}  // namespace handheld::flash
