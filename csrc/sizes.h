// Checked products of sizes, so that no buffer is allocated too small.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <stdexcept>

namespace timecycle {

// The product of sizes. Throws std::length_error, in Python a ValueError, if one is negative or the product exceeds
// 2^63 - 1.
inline int64_t checked_product(std::initializer_list<int64_t> sizes) {
  int64_t product = 1;
  for (const int64_t size : sizes)
    if (size < 0 || __builtin_mul_overflow(product, size, &product))
      throw std::length_error("the sizes of a call multiply to more than a buffer can hold");
  return product;
}

}  // namespace timecycle
