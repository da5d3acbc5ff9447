// Writes small packs of random weights, and computes what they must give: these tests run without Python.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "format.h"

namespace test {

struct Model {
  std::string folder;
  handheld::flash::Layout layout;
  // By layer: every neuron's gate, up and down weights as the engine sees them, [d_ff][3 * d_model].
  std::vector<std::vector<float>> weights;

  std::vector<float> input(uint32_t seed) const;
  // x after the rounding that integer rows take.
  std::vector<float> as_multiplied(const std::vector<float>& x) const;
  // Of those neurons, or of all.
  std::vector<float> output(uint32_t layer, const std::vector<float>& input, const std::vector<uint32_t>* neurons) const;
};

// A gated ReLU model of `layers` layers in a new temporary folder, which the caller leaves to the system.
Model write_model(uint32_t layers = 2, uint32_t d_model = 64, uint32_t d_ff = 96,
                  hh_flash_dtype dtype = HH_FLASH_INT8);

// The header of such a model, ready to be damaged.
std::vector<uint8_t> read_file(const std::string& path);
void write_file(const std::string& path, const std::vector<uint8_t>& bytes);

// Makes the hash of a header fit its contents again.
void seal(std::vector<uint8_t>& header);

bool close(const std::vector<float>& a, const std::vector<float>& b);

}  // namespace test
