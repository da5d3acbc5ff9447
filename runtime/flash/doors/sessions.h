// What the doors into other runtimes share: one session for all nodes of a graph that name the same pack, so that they
// share its budget and its threads. Over flash.h alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "handheld/flash.h"

namespace handheld::flash::doors {

class SharedSession {
 public:
  // The session on a pack, opened by the first node that asks for it and closed with the last that holds it. A relative
  // path is below the folder of handheld_flash_set_folder. Throws std::runtime_error, also when the pack is open with
  // another budget. Thread-safe.
  static std::shared_ptr<SharedSession> open(std::string_view pack, int64_t budget_bytes);

  ~SharedSession();
  SharedSession(const SharedSession&) = delete;
  SharedSession& operator=(const SharedSession&) = delete;

  size_t d_model() const { return d_model_; }

  // x and y: [tokens][d_model], one call of the engine for each, in order. Throws std::runtime_error. Thread-safe.
  void feed_forward(int64_t layer, hh_flash_mode mode, const float* x, size_t tokens, float* y);

 private:
  SharedSession(const std::string& path, uint64_t budget_bytes);

  std::string path_;
  uint64_t budget_bytes_;
  size_t d_model_ = 0;
  uint32_t layers_ = 0;
  std::mutex mutex_;
  hh_flash_session* session_ = nullptr;
};

// "dense", "exact" or "selected". Throws std::runtime_error.
hh_flash_mode mode_of(std::string_view name);

}  // namespace handheld::flash::doors

// Where packs are that graphs name by a relative path: an app knows only at run time where it was installed. To be called
// before a graph is loaded; by default the process' working folder. Thread-safe.
extern "C" HH_FLASH_API void handheld_flash_set_folder(const char* folder);
