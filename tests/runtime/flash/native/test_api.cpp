// The C interface: statuses, messages, ownership.
#include <cstring>
#include <string>

#include "check.h"
#include "handheld/flash.h"
#include "writer.h"

namespace {

std::string message() { return hh_flash_last_error(); }

hh_flash_session_options options_with(uint64_t budget_bytes) {
  hh_flash_session_options options;
  hh_flash_session_options_init(&options);
  options.techniques &= ~static_cast<uint32_t>(HH_FLASH_INT8_HIDDEN);  // see test_session.cpp
  options.budget_bytes = budget_bytes;
  return options;
}

}  // namespace

TEST(a_session_outlives_the_handle_of_its_pack) {
  const test::Model model = test::write_model();
  hh_flash_pack* pack = nullptr;
  hh_flash_session* session = nullptr;
  CHECK(hh_flash_pack_open(model.folder.c_str(), HH_FLASH_DIRECT_IO, &pack) == HH_FLASH_OK);
  CHECK(hh_flash_pack_verify(pack) == HH_FLASH_OK);
  const hh_flash_session_options options = options_with(16u << 20);
  CHECK(hh_flash_session_open(pack, &options, &session) == HH_FLASH_OK);
  hh_flash_pack_close(pack);
  const std::vector<float> x = model.input(3);
  std::vector<float> y(x.size());
  CHECK(hh_flash_session_ffn(session, 1, HH_FLASH_DENSE, x.data(), nullptr, 0, y.data()) == HH_FLASH_OK);
  CHECK(test::close(y, model.output(1, x, nullptr)));
  const uint32_t ids[] = {5, 5, 2};
  CHECK(hh_flash_session_ffn(session, 1, HH_FLASH_SELECTED, x.data(), ids, 3, y.data()) == HH_FLASH_OK);
  uint32_t found[1] = {};
  size_t count = 0;
  CHECK(hh_flash_session_resident(session, 1, found, 1, &count) == HH_FLASH_OK);
  CHECK(count == 2 && (found[0] == 2 || found[0] == 5));
  hh_flash_session_close(session);
}

TEST(a_budget_below_the_floor_names_the_floor) {
  const test::Model model = test::write_model();
  hh_flash_pack* pack = nullptr;
  hh_flash_session* session = nullptr;
  CHECK(hh_flash_pack_open(model.folder.c_str(), 0, &pack) == HH_FLASH_OK);
  uint64_t floor_bytes = 0;
  hh_flash_session_options options = options_with(0);
  options.pinned_neurons = 10;
  CHECK(hh_flash_pack_floor(pack, &options, &floor_bytes) == HH_FLASH_OK);
  options.budget_bytes = floor_bytes - 1;
  CHECK(hh_flash_session_open(pack, &options, &session) == HH_FLASH_BUDGET);
  CHECK(message().find(std::to_string(floor_bytes)) != std::string::npos);
  CHECK(session == nullptr);
  options.budget_bytes = floor_bytes;
  CHECK(hh_flash_session_open(pack, &options, &session) == HH_FLASH_OK);
  hh_flash_stats stats;
  stats.struct_bytes = sizeof stats;
  CHECK(hh_flash_session_stats(session, &stats) == HH_FLASH_OK);
  CHECK(stats.held_bytes == floor_bytes && stats.table_rows == 20);
  hh_flash_session_close(session);
  hh_flash_pack_close(pack);
}

TEST(bad_arguments_are_refused) {
  const test::Model model = test::write_model();
  hh_flash_pack* pack = nullptr;
  CHECK(hh_flash_pack_open("/nowhere/at/all", 0, &pack) == HH_FLASH_NOT_FOUND);
  CHECK(message().find("/nowhere/at/all/neurons.bin") != std::string::npos);
  CHECK(hh_flash_pack_open(nullptr, 0, &pack) == HH_FLASH_INVALID_ARGUMENT);
  CHECK(hh_flash_pack_open(model.folder.c_str(), 8, &pack) == HH_FLASH_INVALID_ARGUMENT);
  CHECK(pack == nullptr);
  CHECK(hh_flash_pack_open(model.folder.c_str(), 0, &pack) == HH_FLASH_OK);
  hh_flash_info info{};
  CHECK(hh_flash_pack_info(pack, &info) == HH_FLASH_INVALID_ARGUMENT);  // struct_bytes
  info.struct_bytes = sizeof info;
  CHECK(hh_flash_pack_info(pack, &info) == HH_FLASH_OK && info.d_ff == 96);

  hh_flash_session* session = nullptr;
  hh_flash_session_options options = options_with(16u << 20);
  options.reader_threads = 0;
  CHECK(hh_flash_session_open(pack, &options, &session) == HH_FLASH_INVALID_ARGUMENT);
  options = options_with(16u << 20);
  CHECK(hh_flash_session_open(pack, &options, &session) == HH_FLASH_OK);
  std::vector<float> x(64);
  std::vector<float> y(64);
  const uint32_t ids[] = {0, 96};
  CHECK(hh_flash_session_ffn(session, 2, HH_FLASH_DENSE, x.data(), nullptr, 0, y.data()) == HH_FLASH_INVALID_ARGUMENT);
  CHECK(hh_flash_session_ffn(session, 0, HH_FLASH_DENSE, x.data(), ids, 1, y.data()) == HH_FLASH_INVALID_ARGUMENT);
  CHECK(hh_flash_session_ffn(session, 0, HH_FLASH_SELECTED, x.data(), ids, 2, y.data()) == HH_FLASH_INVALID_ARGUMENT);
  CHECK(hh_flash_session_ffn(session, 0, HH_FLASH_SELECTED, x.data(), nullptr, 0, y.data()) == HH_FLASH_UNSUPPORTED);
  CHECK(hh_flash_session_ffn(session, 0, HH_FLASH_SELECTED, x.data(), ids, 0, y.data()) == HH_FLASH_OK);
  CHECK(hh_flash_session_ffn(nullptr, 0, HH_FLASH_DENSE, x.data(), nullptr, 0, y.data()) == HH_FLASH_INVALID_ARGUMENT);
  hh_flash_session_cancel(session);
  CHECK(hh_flash_session_ffn(session, 0, HH_FLASH_DENSE, x.data(), nullptr, 0, y.data()) == HH_FLASH_CANCELLED);
  CHECK(hh_flash_session_resume(session) == HH_FLASH_OK);
  CHECK(hh_flash_session_reset(session) == HH_FLASH_OK);
  hh_flash_session_close(session);
  hh_flash_session_close(nullptr);
  hh_flash_pack_close(pack);
  hh_flash_pack_close(nullptr);
  hh_flash_session_cancel(nullptr);
}

TEST(an_altered_weight_is_found_by_verify) {
  const test::Model model = test::write_model();
  std::vector<uint8_t> file = test::read_file(model.folder + "/neurons.bin");
  file[file.size() / 2] ^= 1;
  test::write_file(model.folder + "/neurons.bin", file);
  hh_flash_pack* pack = nullptr;
  CHECK(hh_flash_pack_open(model.folder.c_str(), 0, &pack) == HH_FLASH_OK);
  CHECK(hh_flash_pack_verify(pack) == HH_FLASH_BAD_PACK);
  CHECK(message().find("layer 0") != std::string::npos || message().find("layer 1") != std::string::npos);
  hh_flash_pack_close(pack);
}
