#include "writer.h"

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>

#include "half.h"
#include "input.h"
#include "sha256.h"

namespace test {
namespace {

using namespace handheld::flash;

constexpr uint16_t kScale = 0x2000;    // 2^-7 in half precision
constexpr uint16_t kMinimum = 0xae00;  // -3/32: weights of both signs

std::string make_folder() {
  std::string name = "/tmp/flash-native-XXXXXX";
  if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot make a temporary folder");
  return name;
}

template <typename T>
void put(std::vector<uint8_t>& bytes, size_t at, T value) {
  std::memcpy(bytes.data() + at, &value, sizeof value);
}

void put_digest(std::vector<uint8_t>& bytes, size_t at, const Digest& digest) {
  std::memcpy(bytes.data() + at, digest.data(), digest.size());
}

// Weight i of a row from a random number, which is stored; returns its value without scale and minimum.
float put_weight(hh_flash_dtype dtype, uint8_t* row, uint32_t i, uint32_t random) {
  const int byte = static_cast<int>(random % 255) - 127;
  const float value = static_cast<float>(byte);
  const uint8_t nibble = random & 15;
  switch (dtype) {
    case HH_FLASH_FP32:
      std::memcpy(row + 4 * i, &value, 4);
      return value;
    case HH_FLASH_FP16: {
      const uint16_t half = static_cast<uint16_t>(0x3c00 | random % 0x400 | (random & 0x400) << 5);
      std::memcpy(row + 2 * i, &half, 2);
      return half_to_float(half);
    }
    case HH_FLASH_INT8:
      row[i] = static_cast<uint8_t>(byte);
      return value;
    default:
      row[i / 32 * 16 + i % 16] |= static_cast<uint8_t>(i % 32 < 16 ? nibble : nibble << 4);
      return static_cast<float>(nibble) - (dtype == HH_FLASH_INT4 ? 8.0f : 0.0f);
  }
}

// Fills a part of zeros, and adds its weights to `values`.
void write_part(const RowFormat& format, std::mt19937& random, uint8_t* row, std::vector<float>& values) {
  const bool has_minimum = format.dtype == HH_FLASH_INT4M;
  for (uint32_t i = 0; i < format.d; ++i) {
    const float weight = put_weight(format.dtype, row, i, static_cast<uint32_t>(random()));
    const float scaled = format.grouped() ? weight * half_to_float(kScale) : weight;
    values.push_back(has_minimum ? scaled + half_to_float(kMinimum) : scaled);
  }
  if (!format.grouped()) return;
  uint8_t* scale = row + format.weight_bytes();
  for (uint32_t group = 0; group < format.d / format.group_size; ++group) {
    std::memcpy(scale, &kScale, 2);
    if (has_minimum) std::memcpy(scale + 2, &kMinimum, 2);
    scale += has_minimum ? 4 : 2;
  }
}

}  // namespace

std::vector<uint8_t> read_file(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) throw std::runtime_error(path);
  std::vector<uint8_t> bytes;
  uint8_t buffer[4096];
  for (size_t got; (got = std::fread(buffer, 1, sizeof buffer, file)) > 0;) {
    bytes.insert(bytes.end(), buffer, buffer + got);
  }
  std::fclose(file);
  return bytes;
}

void write_file(const std::string& path, const std::vector<uint8_t>& bytes) {
  std::FILE* file = std::fopen(path.c_str(), "wb");
  if (file == nullptr || std::fwrite(bytes.data(), 1, bytes.size(), file) != bytes.size()) {
    throw std::runtime_error(path);
  }
  std::fclose(file);
}

void seal(std::vector<uint8_t>& header) {
  put_digest(header, 16, sha256(Bytes(header.data() + 48, header.size() - 48)));
}

Model write_model(uint32_t layers, uint32_t d_model, uint32_t d_ff, hh_flash_dtype dtype) {
  Model model;
  model.folder = make_folder();
  BundleShape shape;
  shape.d_model = d_model;
  shape.dtype = dtype;
  shape.group_size = shape.row().grouped() ? 32 : 0;
  shape.activation = HH_FLASH_RELU;
  shape.gated = true;
  const uint32_t stride = static_cast<uint32_t>(round_up(shape.content_bytes(), 16));
  const uint32_t pages = (stride + kPageBytes - 1) / kPageBytes;
  const uint32_t group_bytes = pages * kPageBytes;
  const uint32_t per_group = group_bytes / stride;
  const uint64_t layer_bytes = uint64_t{(d_ff + per_group - 1) / per_group} * group_bytes;

  const std::string empty = "{}      ";
  std::vector<uint8_t> resident(8 + empty.size());
  put<uint64_t>(resident, 0, empty.size());
  std::memcpy(resident.data() + 8, empty.data(), empty.size());
  write_file(model.folder + "/resident.safetensors", resident);

  std::vector<uint8_t> file(kPageBytes + layers * layer_bytes);
  std::mt19937 random(7);
  for (uint32_t layer = 0; layer < layers; ++layer) {
    std::vector<float> values;
    const uint64_t start = kPageBytes + layer * layer_bytes;
    for (uint32_t n = 0; n < d_ff; ++n) {
      const uint64_t bundle = start + uint64_t{n / per_group} * group_bytes + uint64_t{n % per_group} * stride;
      for (uint32_t part = 0; part < 3; ++part) {
        write_part(shape.row(), random, file.data() + bundle + part * shape.part_bytes(), values);
      }
    }
    model.weights.push_back(std::move(values));
    put<uint64_t>(file, 192 + 64 * layer, start);
    put<uint64_t>(file, 200 + 64 * layer, layer_bytes);
    put_digest(file, 208 + 64 * layer, sha256(Bytes(file.data() + start, layer_bytes)));
  }
  std::memcpy(file.data(), "HHFLASH", 8);
  put<uint32_t>(file, 8, kFormatVersion);
  put<uint32_t>(file, 12, kPageBytes);
  put<uint64_t>(file, 48, file.size());
  put<uint64_t>(file, 56, resident.size());
  put_digest(file, 64, sha256(Bytes(resident.data(), resident.size())));
  const uint32_t fields[] = {layers, d_model, d_ff, HH_FLASH_RELU, 1, dtype, shape.group_size, stride, per_group,
                             group_bytes};
  std::memcpy(file.data() + 96, fields, sizeof fields);
  std::vector<uint8_t> header(file.begin(), file.begin() + kPageBytes);
  seal(header);
  std::memcpy(file.data(), header.data(), header.size());
  write_file(model.folder + "/neurons.bin", file);
  model.layout = parse_header(header, file.size());
  return model;
}

std::vector<float> Model::input(uint32_t seed) const {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> value(-1, 1);
  std::vector<float> x(layout.shape.d_model);
  for (float& v : x) v = value(random);
  return x;
}

std::vector<float> Model::output(uint32_t layer, const std::vector<float>& input,
                                 const std::vector<uint32_t>* neurons) const {
  const std::vector<float> x = as_multiplied(input);
  const size_t d = x.size();
  std::vector<float> y(d);
  const size_t count = neurons == nullptr ? layout.d_ff : neurons->size();
  for (size_t i = 0; i < count; ++i) {
    const float* row = weights[layer].data() + (neurons == nullptr ? i : (*neurons)[i]) * 3 * d;
    float gate = 0;
    float up = 0;
    for (size_t j = 0; j < d; ++j) gate += row[j] * x[j];
    for (size_t j = 0; j < d; ++j) up += row[d + j] * x[j];
    const float h = std::max(gate, 0.0f) * up;
    for (size_t j = 0; j < d; ++j) y[j] += h * row[2 * d + j];
  }
  return y;
}

std::vector<float> Model::as_multiplied(const std::vector<float>& x) const {
  const RowFormat format = layout.shape.row();
  if (!format.grouped()) return x;
  Rounding rounding(format.d);
  const QuantisedVector& rounded = rounding.round(portable_kernels(), x.data(), format.d, format.group_size);
  std::vector<float> values(x.size());
  for (size_t i = 0; i < x.size(); ++i) values[i] = rounded.values[i] * rounded.scales[i / format.group_size];
  return values;
}

bool close(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return false;
  float largest = 1;
  for (const float value : b) largest = std::max(largest, std::fabs(value));
  for (size_t i = 0; i < a.size(); ++i) {
    if (!(std::fabs(a[i] - b[i]) <= 1e-4f * largest)) return false;
  }
  return true;
}

}  // namespace test
