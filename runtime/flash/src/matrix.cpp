#include "matrix.h"

#include <algorithm>

namespace handheld::flash {
namespace {

void multiply_part(const Kernels& kernels, const Input& x, const Product& product, size_t first, size_t last) {
  multiply_rows(kernels, product.matrix->format, product.matrix->data, first, last, x, product.out);
  if (product.bias == nullptr) return;
  for (size_t i = first; i < last; ++i) product.out[i] += product.bias[i];
}

// Rows first .. last of the products, counted through all of them.
void multiply_range(const Kernels& kernels, const Input& x, std::initializer_list<Product> products, size_t first,
                    size_t last) {
  size_t start = 0;
  for (const Product& product : products) {
    const size_t rows = product.matrix->rows;
    const size_t from = std::max(first, start);
    const size_t to = std::min(last, start + rows);
    if (from < to) multiply_part(kernels, x, product, from - start, to - start);
    start += rows;
  }
}

}  // namespace

void multiply(const Kernels& kernels, ComputePool& pool, const Input& x, std::initializer_list<Product> products,
              const std::function<void()>& first) {
  size_t rows = 0;
  size_t bytes = 0;
  for (const Product& product : products) {
    rows += product.matrix->rows;
    bytes += size_t{product.matrix->rows} * product.matrix->format.part_bytes();
  }
  if (bytes < kForkBytes) {
    first();
    return multiply_range(kernels, x, products, 0, rows);
  }
  const size_t parts = std::min(kPartsPerThread * pool.threads(), bytes / kForkBytes + 1);
  // Whole blocks, so that no part treats rows one by one.
  const auto start = [&](size_t part) { return std::min(rows, (rows * part / parts + 3) / 4 * 4); };
  pool.run(parts, [&](uint32_t part, uint32_t) {
    if (part == 0) first();
    multiply_range(kernels, x, products, start(part), start(part + 1));
  });
}

void copy_row(const Kernels& kernels, const Matrix& matrix, size_t index, float* out) {
  const float one = 1;
  const uint8_t* row = matrix.data + index * matrix.format.part_bytes();
  std::fill_n(out, matrix.format.d, 0.0f);
  kernels.accumulate(matrix.format, &row, 1, &one, out, nullptr);
}

}  // namespace handheld::flash
