#include <algorithm>
#include <cmath>
#include <string>

#include "session.h"

namespace handheld::flash {
namespace {

constexpr uint32_t kAllTechniques =
    HH_FLASH_BUNDLING | HH_FLASH_MERGING | HH_FLASH_COMPUTE_RESIDENT | HH_FLASH_IO_URING | HH_FLASH_NEIGHBOURS |
    HH_FLASH_INT8_ACTIVATIONS | HH_FLASH_INT8_HIDDEN | HH_FLASH_GATE_FIRST;
constexpr uint32_t kMaxReaders = 256;
constexpr uint32_t kMaxComputeThreads = 64;
constexpr uint32_t kMaxChunkBytes = 64u << 20;
// What a thread touches of its stack, and the session's own objects: an allowance, checked by a test on the RSS.
constexpr uint64_t kBytesPerThread = 16 * 1024;
constexpr uint64_t kSessionBytes = 64 * 1024;

void require(bool holds, const std::string& message) {
  if (!holds) fail(HH_FLASH_INVALID_ARGUMENT, message);
}

bool pins_what_fits(const Options& options) {
  return options.pinned_neurons == HH_FLASH_PIN_ALL || options.pinned_neurons == HH_FLASH_PIN_MOST;
}

void check(const Pack& pack, const Options& options) {
  require((options.techniques & ~kAllTechniques) == 0, "options.techniques has unknown flags.");
  require(options.reader_threads >= 1 && options.reader_threads <= kMaxReaders, "reader_threads must be 1 to 256.");
  require(options.compute_threads >= 1 && options.compute_threads <= kMaxComputeThreads,
          "compute_threads must be 1 to 64.");
  require(options.chunk_bytes <= kMaxChunkBytes, "chunk_bytes must be at most 64 MiB.");
  require(pins_what_fits(options) || options.pinned_neurons <= pack.layout().d_ff,
          "pinned_neurons must be at most " + std::to_string(pack.layout().d_ff) + ", the layer's neurons.");
  require(options.select_share >= 0 && options.select_share <= 1, "select_share must be 0 to 1.");
  // Written so that a NaN is refused.
  require(options.miss_weight > 0 && options.miss_weight <= 1, "miss_weight must be above 0 and at most 1.");
  require(options.kernels <= HH_FLASH_KERNELS_NEON, "options.kernels must be of hh_flash_kernels.");
  require(options.selector == HH_FLASH_SELECTOR_NONE || options.selector == HH_FLASH_SELECTOR_HOT,
          "options.selector must be NONE (the pack's own) or HOT.");
}

ReadPolicy read_policy(const Pack& pack, const Options& options) {
  ReadPolicy policy;
  policy.alignment = pack.bundles().alignment();
  policy.merge = (options.techniques & HH_FLASH_MERGING) != 0;
  policy.bundled = (options.techniques & HH_FLASH_BUNDLING) != 0;
  policy.merge_gap_bytes = options.merge_gap_bytes;
  // An unaligned bundle may need a sector more at each end.
  const uint64_t bundle = uint64_t{pack.layout().shape.content_bytes()} + 2 * uint64_t{policy.alignment};
  const uint64_t chunk = round_up(std::max<uint64_t>(options.chunk_bytes, bundle), kMemoryAlignment);
  policy.chunk_bytes = static_cast<uint32_t>(chunk);
  return policy;
}

}  // namespace

Options default_options() {
  Options options{};
  options.struct_bytes = sizeof options;
  options.techniques = kAllTechniques;
  options.reader_threads = 16;
  options.compute_threads = 2;
  options.window_tokens = 5;
  options.merge_gap_bytes = 8 * 1024;
  options.chunk_bytes = 128 * 1024;
  options.miss_weight = 1;
  return options;
}

Budget::Budget(const Pack& pack, const Options& options, uint32_t block_tokens)
    : layers_(pack.layout().layer_count()), d_ff_(pack.layout().d_ff) {
  check(pack, options);
  const Layout& layout = pack.layout();
  policy = read_policy(pack, options);
  row_bytes = uint64_t{layout.bundle_stride} + Table::kBytesPerRow;

  const uint64_t outputs = kPartsPerThread * options.compute_threads;
  const uint64_t partial = outputs * block_tokens * layout.shape.d_model * sizeof(float);
  const uint64_t tables = uint64_t{layers_} * (sizeof(Table) + d_ff_ * Table::kBytesPerNeuron + sizeof(uint64_t));
  const uint64_t batches = 4 * ReadBatch::reserved_bytes(d_ff_, policy, layout.shape);
  const uint64_t scratch = d_ff_ * uint64_t{2 * sizeof(uint8_t) + 3 * sizeof(uint32_t) + sizeof(uint8_t*)};
  const uint64_t inputs = block_tokens * (sizeof(Rounding) + sizeof(Input) + Rounding::bytes(layout.shape.d_model));
  const uint64_t threads = (uint64_t{options.reader_threads} + options.compute_threads) * kBytesPerThread;
  const uint64_t pinned = pins_what_fits(options) ? 0 : options.pinned_neurons;
  buffer_bytes = uint64_t{options.reader_threads} * policy.chunk_bytes;
  tensor_bytes = pack.held_bytes();
  bookkeeping_bytes = kSessionBytes + partial + tables + batches + scratch + inputs + threads +
                      Selector::scratch_bytes(layout);
  pinned_bytes = pinned * layers_ * row_bytes;
  fixed_bytes = buffer_bytes + tensor_bytes + bookkeeping_bytes;
  floor_bytes = fixed_bytes + pinned_bytes;
}

std::string Budget::parts() const {
  return std::to_string(buffer_bytes) + " for read buffers (reader_threads, chunk_bytes), " +
         std::to_string(tensor_bytes) + " for selectors and the order of neurons, " + std::to_string(bookkeeping_bytes) +
         " for bookkeeping, " + std::to_string(pinned_bytes) + " for pinned_neurons";
}

void Budget::require(uint64_t bytes) const {
  if (bytes >= floor_bytes) return;
  fail(HH_FLASH_BUDGET, "A budget of " + std::to_string(bytes) + " bytes is below the floor of " +
                            std::to_string(floor_bytes) + " bytes for this pack and these options: " + parts() +
                            ". Raise the budget or lower those.");
}

std::vector<uint32_t> Budget::rows_per_layer(uint64_t bytes) const {
  const uint64_t rows = (bytes - fixed_bytes) / row_bytes;
  std::vector<uint32_t> capacities(layers_);
  for (uint32_t layer = 0; layer < layers_; ++layer) {
    const uint64_t share = rows / layers_ + (layer < rows % layers_ ? 1 : 0);
    capacities[layer] = static_cast<uint32_t>(std::min<uint64_t>(share, d_ff_));
  }
  return capacities;
}

}  // namespace handheld::flash
