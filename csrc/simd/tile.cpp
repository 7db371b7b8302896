#include "simd/tile.h"

#include <algorithm>
#include <limits>

#include "simd/exponential.h"
#include "simd/variants.h"

namespace timecycle {

TIMECYCLE_VARIANTS
void column_maximum(const float* tile, int64_t rows, float* largest) {
  std::copy_n(tile, kLanes, largest);
  for (int64_t row = 1; row < rows; ++row) {
    const float* values = tile + row * kLanes;
    for (int64_t q = 0; q < kLanes; ++q) largest[q] = values[q] > largest[q] ? values[q] : largest[q];
  }
}

TIMECYCLE_VARIANTS
void column_exp_sum(const float* tile, int64_t rows, const float* shift, float scale, float* sum) {
  for (int64_t row = 0; row < rows; ++row) {
    const float* values = tile + row * kLanes;
    for (int64_t q = 0; q < kLanes; ++q) sum[q] += exp_of_negative((values[q] - shift[q]) * scale);
  }
}

TIMECYCLE_VARIANTS
void column_exp_sum(const float* tile, const float* multiplicity, int64_t rows, const float* shift, float scale,
                    float* sum) {
  for (int64_t i = 0; i < rows * kLanes; i += kLanes)
    for (int64_t q = 0; q < kLanes; ++q) {
      const float power = exp_of_negative((tile[i + q] - shift[q]) * scale);
      // If the multiplicity is 0, the tile and perhaps the shift are -inf, and the power is undefined.
      sum[q] += multiplicity[i + q] > 0.0f ? multiplicity[i + q] * power : 0.0f;
    }
}

TIMECYCLE_VARIANTS
void row_exponentials(float* tile, TileMultiplicity multiplicity, int64_t rows, const float* shift, const float* factor,
                      float scale) {
  const float uniform = static_cast<float>(multiplicity.uniform);
  for (int64_t row = 0; row < rows; ++row) {
    float* values = tile + row * kLanes;
    const float above = shift[row], times = factor[row];
    if (!multiplicity.per_entry) {
      for (int64_t q = 0; q < kLanes; ++q) values[q] = times * uniform * exp_of_negative(values[q] * scale - above);
      continue;
    }
    const float* counts = multiplicity.per_entry + row * kLanes;
    // The power of a key that does not count is arbitrary.
    for (int64_t q = 0; q < kLanes; ++q)
      values[q] = counts[q] > 0.0f ? times * counts[q] * exp_of_negative(values[q] * scale - above) : 0.0f;
  }
}

TIMECYCLE_VARIANTS
void fill_multiplicity(float* multiplicity, int64_t rows, int32_t first, const int32_t* column,
                       const int32_t* half_width, float inside, float outside) {
  for (int64_t row = 0; row < rows; ++row) {
    const int32_t x = first + static_cast<int32_t>(row);
    for (int64_t q = 0; q < kLanes; ++q) {
      const int32_t distance = x > column[q] ? x - column[q] : column[q] - x;
      multiplicity[row * kLanes + q] = distance <= half_width[q] ? inside : outside;
    }
  }
}

TIMECYCLE_VARIANTS
void mask_tile(float* tile, const float* multiplicity, int64_t rows) {
  for (int64_t i = 0; i < rows * kLanes; ++i)
    tile[i] = multiplicity[i] > 0.0f ? tile[i] : -std::numeric_limits<float>::infinity();
}

}  // namespace timecycle
