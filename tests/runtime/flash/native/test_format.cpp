// Hostile headers: whatever is done to one, it is refused or describes a layout that stays within the file.
#include <cstring>
#include <random>
#include <string>

#include "check.h"
#include "format.h"
#include "safetensors.h"
#include "writer.h"

using namespace handheld::flash;

namespace {

constexpr int kMutations = 20000;

std::vector<uint8_t> header_of(const test::Model& model) {
  std::vector<uint8_t> file = test::read_file(model.folder + "/neurons.bin");
  file.resize(kPageBytes);
  return file;
}

void damage(std::vector<uint8_t>& bytes, std::mt19937& random, size_t first, size_t last) {
  static constexpr uint64_t kNasty[] = {0, 1, 0x7f, 0x80, 0xff, 0x7fffffff, 0x80000000, 0xffffffff, UINT64_MAX, 16384};
  const int changes = 1 + static_cast<int>(random() % 3);
  for (int i = 0; i < changes; ++i) {
    const size_t at = first + random() % (last - first);
    if (random() % 2 == 0) {
      bytes[at] = static_cast<uint8_t>(random());
    } else {
      const uint64_t value = kNasty[random() % 10];
      std::memcpy(bytes.data() + at / 4 * 4, &value, std::min<size_t>(random() % 2 == 0 ? 4 : 8, last - at / 4 * 4));
    }
  }
}

}  // namespace

TEST(sha256_of_the_standards_examples) {
  const std::string abc = "abc";
  const Digest digest = sha256({reinterpret_cast<const uint8_t*>(abc.data()), abc.size()});
  const uint8_t expected[] = {0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40};
  CHECK(std::memcmp(digest.data(), expected, sizeof expected) == 0);
  // In pieces as in one.
  const std::vector<uint8_t> many(1000, 'x');
  Sha256 pieces;
  for (size_t at = 0; at < many.size(); at += 37) pieces.update({many.data() + at, std::min<size_t>(37, 1000 - at)});
  CHECK(pieces.finish() == sha256(many));
}

TEST(a_header_whose_hash_does_not_fit_is_refused) {
  const test::Model model = test::write_model();
  std::mt19937 random(1);
  const std::vector<uint8_t> good = header_of(model);
  for (int i = 0; i < 2000; ++i) {
    std::vector<uint8_t> header = good;
    header[random() % header.size()] ^= static_cast<uint8_t>(1 + random() % 255);
    CHECK(check::status_of([&] { parse_header(header, model.layout.file_bytes); }) == HH_FLASH_BAD_PACK);
  }
}

TEST(a_header_made_to_lie_is_refused_or_stays_within_the_file) {
  std::mt19937 random(2);
  for (const hh_flash_dtype dtype : {HH_FLASH_INT8, HH_FLASH_FP32, HH_FLASH_INT4M}) {
    const test::Model model = test::write_model(2, 64, 96, dtype);
    const std::vector<uint8_t> good = header_of(model);
    int accepted = 0;
    for (int i = 0; i < kMutations; ++i) {
      std::vector<uint8_t> header = good;
      damage(header, random, 48, 330);
      test::seal(header);
      try {
        const Layout layout = parse_header(header, model.layout.file_bytes);
        ++accepted;
        for (uint32_t layer = 0; layer < layout.layer_count(); ++layer) {
          const uint64_t end = layout.bundle_offset(layer, layout.d_ff - 1) + layout.shape.content_bytes();
          CHECK(end <= model.layout.file_bytes);
          CHECK(layout.bundle_offset(layer, 0) >= kPageBytes);
        }
      } catch (const Error& error) {
        CHECK(error.status() == HH_FLASH_BAD_PACK);
      }
    }
    CHECK(accepted > 0 && accepted < kMutations);
  }
}

TEST(a_header_with_a_dtype_that_its_bundles_cannot_hold_is_refused) {
  const test::Model model = test::write_model();  // int8: 64 weights and 4 bytes of scales
  for (uint32_t dtype = 0; dtype < 8; ++dtype) {
    for (const uint32_t group : {0u, 32u}) {
      std::vector<uint8_t> header = header_of(model);
      std::memcpy(header.data() + 116, &dtype, 4);
      std::memcpy(header.data() + 120, &group, 4);
      test::seal(header);
      const bool smaller = dtype == HH_FLASH_INT8 || dtype == HH_FLASH_INT4 || dtype == HH_FLASH_INT4M;
      CHECK(check::status_of([&] { parse_header(header, model.layout.file_bytes); }) ==
            (smaller && group == 32 ? HH_FLASH_OK : HH_FLASH_BAD_PACK));
    }
  }
}

TEST(a_header_of_any_length_is_refused_or_read_within_bounds) {
  const test::Model model = test::write_model();
  const std::vector<uint8_t> good = header_of(model);
  for (size_t length = 0; length < 400; ++length) {
    const std::vector<uint8_t> header(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(length));
    CHECK(check::status_of([&] { parse_header(header, model.layout.file_bytes); }) == HH_FLASH_BAD_PACK);
  }
}

TEST(safetensors_headers_made_to_lie_are_refused_or_stay_within_the_file) {
  const std::string text =
      R"({"__metadata__":{"a":"b"},"flash.0.order":{"dtype":"I32","shape":[4],"data_offsets":[0,16]},)"
      R"("w":{"dtype":"F16","shape":[2,3],"data_offsets":[16,28]}})";
  const std::vector<uint8_t> good(text.begin(), text.end());
  const uint64_t file_bytes = 8 + good.size() + 28;
  const TensorTable tensors = parse_safetensors(good, file_bytes);
  CHECK(tensors.size() == 2 && tensors.at("w").offset == 8 + good.size() + 16 && tensors.at("w").bytes == 12);

  std::mt19937 random(3);
  static constexpr char kAlphabet[] = "{}[]\",:0123456789\\ eE-.nulltrue\n";
  for (int i = 0; i < kMutations; ++i) {
    std::vector<uint8_t> json = good;
    const int changes = 1 + static_cast<int>(random() % 4);
    for (int c = 0; c < changes; ++c) {
      const size_t at = random() % json.size();
      switch (random() % 3) {
        case 0:
          json[at] = static_cast<uint8_t>(kAlphabet[random() % (sizeof kAlphabet - 1)]);
          break;
        case 1:
          json[at] = static_cast<uint8_t>(random());
          break;
        default:
          json.erase(json.begin() + static_cast<std::ptrdiff_t>(at));
      }
    }
    try {
      for (const auto& [name, tensor] : parse_safetensors(json, file_bytes)) {
        CHECK(tensor.offset >= 8 + json.size() && tensor.offset + tensor.bytes <= file_bytes);
      }
    } catch (const Error& error) {
      CHECK(error.status() == HH_FLASH_BAD_PACK);
    }
  }
}

TEST(safetensors_that_are_not_strictly_so_are_refused) {
  const char* const bad[] = {
      "",
      "[]",
      "{}x",
      R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
      R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
      R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})",
      R"({"a":{"dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,8]}})",
      R"({"a":{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,8]}})",
      R"({"a":{"dtype":"F9","shape":[2],"data_offsets":[0,8]}})",
      R"({"a":{"dtype":"F32","shape":[02],"data_offsets":[0,8]}})",
      R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}})",
      R"({"a":{"dtype":"F32","shape":[2]}})",
      R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})",
  };
  for (const char* text : bad) {
    const std::vector<uint8_t> json(text, text + std::strlen(text));
    CHECK(check::status_of([&] { parse_safetensors(json, 8 + json.size() + 8); }) == HH_FLASH_BAD_PACK);
  }
  const std::string good = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  const std::vector<uint8_t> json(good.begin(), good.end());
  CHECK(parse_safetensors(json, 8 + json.size() + 8).size() == 1);
}
