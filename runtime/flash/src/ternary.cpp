#include "ternary.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "feed_forward.h"

namespace handheld::flash {
namespace {

constexpr size_t kAtOnce = 64;  // neurons whose rows are multiplied by one kernel call

// How many times their root mean square up products are taken to be at most; that is measured on so many neurons of each
// part of the work. Of what SmolLM2-135M selects, one in 5000 is beyond that of all neurons.
constexpr float kSpread = 4;
constexpr size_t kSampled = 32;

// Shorter up rows lie for the most part in cache lines that their gates have fetched: leaving them out saves less than
// asking each gate takes.
constexpr uint32_t kShortestRow = 256;

constexpr float kNoNoise[2] = {};

}  // namespace

// The mean of h^2 times the importance's square: a score is its root.
inline float TernaryScores::Terms::energy(uint32_t neuron, float gate, float up) const {
  if (bias != nullptr) up += bias[neuron];
  const float* errors = noise == nullptr ? kNoNoise : noise + neuron * (gated ? 2 : 1);
  const float weight = importance == nullptr ? 1 : importance[neuron];
  const float activated = activate(activation, gated ? gate : up);
  const float energy = (activated * activated + errors[0]) * weight * weight;
  return gated ? energy * (up * up + errors[1]) : energy;
}

TernaryScores::TernaryScores(const Pack& pack, const Kernels& kernels, ComputePool& pool, bool gate_first,
                             bool computes_resident)
    : pack_(pack),
      kernels_(kernels),
      pool_(pool),
      gate_first_(gate_first && pack.layout().shape.gated && ternary_part_bytes(pack.layout()) >= kShortestRow),
      computes_resident_(computes_resident),
      rounding_(pack.layout().shape.d_model),
      gates_(pack.layout().d_ff) {}

uint64_t TernaryScores::bytes(const Layout& layout) {
  return Rounding::bytes(layout.shape.d_model) + uint64_t{layout.d_ff} * sizeof(float);
}

// Calls run(first, last) for parts of 0 .. count.
template <typename Run>
void TernaryScores::by_parts(size_t count, Run run) {
  const size_t parts = kPartsPerThread * pool_.threads();
  pool_.run(parts, [&](uint32_t part, uint32_t) { run(count * part / parts, count * (part + 1) / parts); });
}

void TernaryScores::score(uint32_t layer, const float* x, uint32_t first, float threshold, const Misses& misses,
                          float* scores) {
  const Layout& layout = pack_.layout();
  const LayerTensors& tensors = pack_.layer(layer);
  rows_ = tensors.selector_rows;
  terms_ = {tensors.selector_bias, tensors.selector_noise, tensors.importance, layout.shape.activation,
            layout.shape.gated};
  input_ = &rounding_.round(kernels_, x, layout.shape.d_model, layout.selector_size);
  const bool by_gate = gate_first_ && threshold > 0;
  by_parts(layout.d_ff - first, [&](size_t begin, size_t end) {
    const size_t sampled = by_gate ? std::min(kSampled, end - begin) : end - begin;
    uint32_t neurons[kAtOnce];
    float squares = 0;
    for (size_t i = begin; i < begin + sampled; i += kAtOnce) {
      const size_t some = std::min(kAtOnce, begin + sampled - i);
      std::iota(neurons, neurons + some, first + static_cast<uint32_t>(i));
      multiply_gates(neurons, some);
      squares += finish(neurons, some, misses, scores);
    }
    if (sampled == end - begin) return;
    const float most = kSpread * std::sqrt(squares / static_cast<float>(sampled));
    const Terms terms = terms_;  // not to be looked up again for each neuron
    uint32_t open[kAtOnce];
    size_t count = 0;
    for (size_t i = begin + sampled; i < end; i += kAtOnce) {
      const size_t some = std::min(kAtOnce, end - i);
      std::iota(neurons, neurons + some, first + static_cast<uint32_t>(i));
      multiply_gates(neurons, some);
      for (size_t n = 0; n < some; ++n) {
        const uint32_t neuron = neurons[n];
        // It is computed, selected or not: that only says how recently it counted, which the gate tells well enough.
        if (computes_resident_ && misses.table != nullptr && !misses.has(neuron)) {
          scores[neuron] = std::sqrt(terms.energy(neuron, gates_[neuron], most / kSpread));
          continue;
        }
        const float weight = misses.weigh(neuron);
        // Written so that a NaN is left out: no score that is not a number is selected.
        if (!(weight * weight * terms.energy(neuron, gates_[neuron], most) > threshold * threshold)) {
          scores[neuron] = kLeftOut;
          continue;
        }
        open[count++] = neuron;
        if (count < kAtOnce) continue;
        finish(open, count, misses, scores);
        count = 0;
      }
    }
    finish(open, count, misses, scores);
  });
}

void TernaryScores::complete(const uint32_t* neurons, size_t count, const Misses& misses, float* scores) {
  const auto complete_some = [&](size_t first, size_t last) {
    for (size_t i = first; i < last; i += kAtOnce) finish(neurons + i, std::min(kAtOnce, last - i), misses, scores);
  };
  if (count <= kAtOnce) return complete_some(0, count);
  by_parts(count, complete_some);
}

void TernaryScores::multiply_gates(const uint32_t* neurons, size_t count) {
  if (terms_.gated) multiply(neurons, count, 0, gates_.data() + neurons[0]);
}

// From the gates to the scores. Returns the sum of the squares of the up products.
float TernaryScores::finish(const uint32_t* neurons, size_t count, const Misses& misses, float* scores) const {
  const Terms terms = terms_;
  float ups[kAtOnce];
  multiply(neurons, count, terms.gated ? 1 : 0, ups);
  float squares = 0;
  for (size_t i = 0; i < count; ++i) {
    const float score = std::sqrt(terms.energy(neurons[i], gates_[neurons[i]], ups[i]));
    scores[neurons[i]] = score * misses.weigh(neurons[i]);
    squares += ups[i] * ups[i];
  }
  return squares;
}

// Row `row` of each neuron times x.
void TernaryScores::multiply(const uint32_t* neurons, size_t count, uint32_t row, float* products) const {
  const size_t stride = ternary_row_bytes(pack_.layout());
  const uint8_t* const first = rows_ + row * size_t{ternary_part_bytes(pack_.layout())};
  const uint8_t* rows[kAtOnce];
  for (size_t i = 0; i < count; ++i) rows[i] = first + neurons[i] * stride;
  kernels_.ternary_dots(rows, count, *input_, products);
}

}  // namespace handheld::flash
