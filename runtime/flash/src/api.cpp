// The C interface to packs and sessions: turns exceptions into statuses and nothing else.
#include <cstring>

#include "boundary.h"
#include "session.h"

using handheld::flash::Budget;
using handheld::flash::fail;
using handheld::flash::guarded;
using handheld::flash::Pack;
using handheld::flash::require_pointers;
using handheld::flash::require_size;
using handheld::flash::Session;

struct hh_flash_session {
  hh_flash_session(std::shared_ptr<const Pack> pack, const hh_flash_session_options& options)
      : session(std::move(pack), options) {}
  Session session;
};

namespace {

// Fixed, so that noting an error cannot itself run out of memory.
thread_local char last_error[1024] = "";

// A null list means the selector, which needs x; a list with no neurons may be given by any pointer that is not null.
bool uses_selector(const float* x, const uint32_t* neurons, size_t count) {
  if (neurons != nullptr) return false;
  if (count != 0) fail(HH_FLASH_INVALID_ARGUMENT, "neurons is null and neuron_count is not 0.");
  require_pointers(x);
  return true;
}

}  // namespace

hh_flash_status handheld::flash::note(hh_flash_status status, const char* message) noexcept {
  std::strncpy(last_error, message, sizeof last_error - 1);
  return status;
}

const char* hh_flash_last_error(void) { return last_error; }

const char* hh_flash_status_name(hh_flash_status status) {
  switch (status) {
    case HH_FLASH_OK:
      return "HH_FLASH_OK";
    case HH_FLASH_INVALID_ARGUMENT:
      return "HH_FLASH_INVALID_ARGUMENT";
    case HH_FLASH_NOT_FOUND:
      return "HH_FLASH_NOT_FOUND";
    case HH_FLASH_BAD_PACK:
      return "HH_FLASH_BAD_PACK";
    case HH_FLASH_IO:
      return "HH_FLASH_IO";
    case HH_FLASH_BUDGET:
      return "HH_FLASH_BUDGET";
    case HH_FLASH_OUT_OF_MEMORY:
      return "HH_FLASH_OUT_OF_MEMORY";
    case HH_FLASH_CANCELLED:
      return "HH_FLASH_CANCELLED";
    case HH_FLASH_UNSUPPORTED:
      return "HH_FLASH_UNSUPPORTED";
    case HH_FLASH_INTERNAL:
      return "HH_FLASH_INTERNAL";
  }
  return "HH_FLASH_UNKNOWN";
}

hh_flash_status hh_flash_pack_open(const char* path, uint32_t flags, hh_flash_pack** pack) {
  return guarded([&] {
    require_pointers(path, pack);
    if ((flags & ~static_cast<uint32_t>(HH_FLASH_DIRECT_IO)) != 0) {
      fail(HH_FLASH_INVALID_ARGUMENT, "flags has unknown bits.");
    }
    const bool direct = (flags & HH_FLASH_DIRECT_IO) != 0;
    *pack = new hh_flash_pack{std::make_shared<const Pack>(path, direct)};
  });
}

void hh_flash_pack_close(hh_flash_pack* pack) { delete pack; }

hh_flash_status hh_flash_pack_info(const hh_flash_pack* pack, hh_flash_info* info) {
  return guarded([&] {
    require_pointers(pack, info);
    require_size(*info);
    const handheld::flash::Layout& layout = pack->pack->layout();
    const handheld::flash::BundleShape& shape = layout.shape;
    hh_flash_info out{};
    out.struct_bytes = sizeof out;
    out.layers = layout.layer_count();
    out.d_model = shape.d_model;
    out.d_ff = layout.d_ff;
    out.activation = shape.activation;
    out.gated = shape.gated ? 1 : 0;
    out.dtype = shape.dtype;
    out.group_size = shape.group_size;
    out.selector = layout.selector;
    out.direct_io = pack->pack->bundles().direct() ? 1 : 0;
    out.read_alignment_bytes = pack->pack->bundles().alignment();
    out.bundle_bytes = layout.bundle_stride;
    out.file_bytes = layout.file_bytes;
    out.selector_bytes = pack->pack->selector_bytes();
    std::memcpy(out.identity, layout.identity.data(), sizeof out.identity);
    *info = out;
  });
}

hh_flash_status hh_flash_pack_verify(const hh_flash_pack* pack) {
  return guarded([&] {
    require_pointers(pack);
    pack->pack->verify();
  });
}

hh_flash_status hh_flash_pack_floor(const hh_flash_pack* pack, const hh_flash_session_options* options,
                                    uint64_t* floor_bytes) {
  return guarded([&] {
    require_pointers(pack, options, floor_bytes);
    require_size(*options);
    *floor_bytes = Budget(*pack->pack, *options).floor_bytes;
  });
}

void hh_flash_session_options_init(hh_flash_session_options* options) {
  if (options != nullptr) *options = handheld::flash::default_options();
}

hh_flash_status hh_flash_session_open(const hh_flash_pack* pack, const hh_flash_session_options* options,
                                      hh_flash_session** session) {
  return guarded([&] {
    require_pointers(pack, options, session);
    require_size(*options);
    *session = new hh_flash_session(pack->pack, *options);
  });
}

void hh_flash_session_close(hh_flash_session* session) { delete session; }

hh_flash_status hh_flash_session_ffn(hh_flash_session* session, uint32_t layer, hh_flash_mode mode, const float* x,
                                     const uint32_t* neurons, size_t neuron_count, float* y) {
  return guarded([&] {
    require_pointers(session, x, y);
    if (mode != HH_FLASH_DENSE && mode != HH_FLASH_EXACT && mode != HH_FLASH_SELECTED) {
      fail(HH_FLASH_INVALID_ARGUMENT, "mode must be HH_FLASH_DENSE, HH_FLASH_EXACT or HH_FLASH_SELECTED.");
    }
    if (mode != HH_FLASH_SELECTED && (neurons != nullptr || neuron_count != 0)) {
      fail(HH_FLASH_INVALID_ARGUMENT, "Only selected mode takes a list of neurons.");
    }
    const bool use_selector = uses_selector(x, neurons, neuron_count);
    session->session.feed_forward(layer, mode, x, {neurons, neuron_count}, use_selector, y);
  });
}

hh_flash_status hh_flash_session_prefetch(hh_flash_session* session, uint32_t layer, const float* x,
                                          const uint32_t* neurons, size_t neuron_count) {
  return guarded([&] {
    require_pointers(session);
    const bool use_selector = uses_selector(x, neurons, neuron_count);
    session->session.prefetch(layer, x, {neurons, neuron_count}, use_selector);
  });
}

hh_flash_status hh_flash_session_select(hh_flash_session* session, uint32_t layer, const float* x, uint32_t* neurons,
                                        size_t capacity, size_t* neuron_count) {
  return guarded([&] {
    require_pointers(session, x, neuron_count);
    if (capacity != 0) require_pointers(neurons);
    *neuron_count = session->session.select(layer, x, {neurons, capacity});
  });
}

hh_flash_status hh_flash_session_resident(hh_flash_session* session, uint32_t layer, uint32_t* neurons,
                                          size_t capacity, size_t* neuron_count) {
  return guarded([&] {
    require_pointers(session, neuron_count);
    if (capacity != 0) require_pointers(neurons);
    *neuron_count = session->session.resident(layer, {neurons, capacity});
  });
}

void hh_flash_session_cancel(hh_flash_session* session) {
  if (session != nullptr) session->session.cancel();
}

hh_flash_status hh_flash_session_resume(hh_flash_session* session) {
  return guarded([&] {
    require_pointers(session);
    session->session.resume();
  });
}

hh_flash_status hh_flash_session_reset(hh_flash_session* session) {
  return guarded([&] {
    require_pointers(session);
    session->session.reset();
  });
}

hh_flash_status hh_flash_session_stats(hh_flash_session* session, hh_flash_stats* stats) {
  return guarded([&] {
    require_pointers(session, stats);
    require_size(*stats);
    *stats = session->session.stats();
  });
}
