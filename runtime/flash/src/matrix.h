// Resident matrices times a vector, on the threads of a pool.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>

#include "compute_pool.h"
#include "memory.h"
#include "input.h"

namespace handheld::flash {

// Rows in the layout of a bundle's part: weights, then their scales.
struct Matrix {
  RowFormat format{};
  uint32_t rows = 0;
  const uint8_t* data = nullptr;
};

// out[rows] = matrix x + bias
struct Product {
  const Matrix* matrix;
  const float* bias;  // null: none
  float* out;
};

// All products with the same x[d], split over the pool's threads as if they were one matrix. One thread does `first`
// before its part.
void multiply(const Kernels& kernels, ComputePool& pool, const Input& x, std::initializer_list<Product> products,
              const std::function<void()>& first);

// out[d] = row `index` of the matrix.
void copy_row(const Kernels& kernels, const Matrix& matrix, size_t index, float* out);

}  // namespace handheld::flash
