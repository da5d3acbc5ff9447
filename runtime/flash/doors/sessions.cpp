#include "sessions.h"

#include <map>
#include <stdexcept>

namespace handheld::flash::doors {
namespace {

struct Registry {
  std::mutex mutex;
  std::string folder;
  std::map<std::string, std::weak_ptr<SharedSession>> sessions;
};

Registry& registry() {
  static Registry all;
  return all;
}

void check(hh_flash_status status, const std::string& what) {
  if (status != HH_FLASH_OK) throw std::runtime_error(what + ": " + hh_flash_last_error());
}

}  // namespace

std::shared_ptr<SharedSession> SharedSession::open(std::string_view pack, int64_t budget_bytes) {
  if (pack.empty()) throw std::runtime_error("The node names no pack.");
  if (budget_bytes <= 0) {
    throw std::runtime_error("budget_bytes is " + std::to_string(budget_bytes) + "; it must be above 0.");
  }
  Registry& all = registry();
  const std::lock_guard<std::mutex> lock(all.mutex);
  std::string path(pack);
  if (path[0] != '/' && !all.folder.empty()) path = all.folder + "/" + path;
  const uint64_t budget = static_cast<uint64_t>(budget_bytes);
  if (std::shared_ptr<SharedSession> open = all.sessions[path].lock()) {
    if (open->budget_bytes_ == budget) return open;
    throw std::runtime_error(path + " is open with a budget of " + std::to_string(open->budget_bytes_) +
                             " bytes, and a node asks for " + std::to_string(budget) +
                             ". Give all nodes of a pack the same budget_bytes.");
  }
  std::shared_ptr<SharedSession> opened(new SharedSession(path, budget));
  all.sessions[path] = opened;
  return opened;
}

SharedSession::SharedSession(const std::string& path, uint64_t budget_bytes)
    : path_(path), budget_bytes_(budget_bytes) {
  hh_flash_pack* pack = nullptr;
  check(hh_flash_pack_open(path.c_str(), HH_FLASH_DIRECT_IO, &pack), path);
  const std::unique_ptr<hh_flash_pack, decltype(&hh_flash_pack_close)> closed_later(pack, hh_flash_pack_close);
  hh_flash_info info{};
  info.struct_bytes = sizeof info;
  check(hh_flash_pack_info(pack, &info), path);
  d_model_ = info.d_model;
  layers_ = info.layers;
  hh_flash_session_options options;
  hh_flash_session_options_init(&options);
  options.budget_bytes = budget_bytes;
  check(hh_flash_session_open(pack, &options, &session_), path);
}

SharedSession::~SharedSession() { hh_flash_session_close(session_); }

void SharedSession::feed_forward(int64_t layer, hh_flash_mode mode, const float* x, size_t tokens, float* y) {
  if (layer < 0 || layer >= int64_t{layers_}) {
    throw std::runtime_error(path_ + " has " + std::to_string(layers_) + " layers; the node asks for layer " +
                             std::to_string(layer) + ".");
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  for (size_t token = 0; token < tokens; ++token) {
    const size_t at = token * d_model_;
    check(hh_flash_session_ffn(session_, static_cast<uint32_t>(layer), mode, x + at, nullptr, 0, y + at), path_);
  }
}

hh_flash_mode mode_of(std::string_view name) {
  if (name == "dense") return HH_FLASH_DENSE;
  if (name == "exact") return HH_FLASH_EXACT;
  if (name == "selected") return HH_FLASH_SELECTED;
  throw std::runtime_error("mode is \"" + std::string(name) + "\"; allowed are dense, exact and selected.");
}

}  // namespace handheld::flash::doors

void handheld_flash_set_folder(const char* folder) {
  using handheld::flash::doors::registry;
  const std::lock_guard<std::mutex> lock(registry().mutex);
  registry().folder = folder == nullptr ? "" : folder;
}
