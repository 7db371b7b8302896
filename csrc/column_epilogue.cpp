#include "column_epilogue.h"

#include <algorithm>
#include <cstring>
#include <limits>

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
void column_reached(const float* tile, int64_t rows, const float* worst, bool equal, uint8_t* reached) {
  if (equal) {
    for (int64_t i = 0; i < rows * kLanes; i += kLanes)
      for (int64_t q = 0; q < kLanes; ++q) reached[i + q] = tile[i + q] >= worst[q];
  } else {
    for (int64_t i = 0; i < rows * kLanes; i += kLanes)
      for (int64_t q = 0; q < kLanes; ++q) reached[i + q] = tile[i + q] > worst[q];
  }
}

namespace {

// exp(x) for x <= 0, relative error below 2e-7: 2^n * 2^f with |f| <= 1/2 and a polynomial for 2^f. std::exp would
// keep the loop around it from being vectorised.
inline __attribute__((always_inline)) float exp_of_negative(float x) {
  const float scaled = std::max(x * 1.44269504f, -126.0f);
  // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits.
  const float shifted = scaled + 12582912.0f;
  const float fraction = scaled - (shifted - 12582912.0f);
  int32_t exponent;
  std::memcpy(&exponent, &shifted, sizeof(exponent));
  float power = 1.5403530e-4f;
  power = power * fraction + 1.3333558e-3f;
  power = power * fraction + 9.6181291e-3f;
  power = power * fraction + 5.5504109e-2f;
  power = power * fraction + 2.4022651e-1f;
  power = power * fraction + 6.9314718e-1f;
  power = power * fraction + 1.0f;
  int32_t bits;
  std::memcpy(&bits, &power, sizeof(bits));
  bits += static_cast<int32_t>(static_cast<uint32_t>(exponent) << 23);
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

}  // namespace

TIMECYCLE_VARIANTS
void column_exp_sum(const float* tile, int64_t rows, const float* shift, float scale, float* sum) {
  for (int64_t row = 0; row < rows; ++row) {
    const float* values = tile + row * kLanes;
    for (int64_t q = 0; q < kLanes; ++q) sum[q] += exp_of_negative((values[q] - shift[q]) * scale);
  }
}

TIMECYCLE_VARIANTS
void column_share(float* tile, const float* counts, float every, int64_t rows, const float* shift, const float* factor,
                  float scale) {
  for (int64_t i = 0; i < rows * kLanes; i += kLanes)
    for (int64_t q = 0; q < kLanes; ++q) {
      const float count = counts ? counts[i + q] : every;
      // What does not count is -inf times scale here; the exponent's lower end keeps it finite.
      tile[i + q] = count > 0.0f ? factor[q] * count * exp_of_negative(tile[i + q] * scale - shift[q]) : 0.0f;
    }
}

TIMECYCLE_VARIANTS
void add_tile(const float* part, int64_t rows, float* total) {
  for (int64_t i = 0; i < rows * kLanes; ++i) total[i] += part[i];
}

TIMECYCLE_VARIANTS
void column_exp_sum(const float* tile, const float* counts, int64_t rows, const float* shift, float scale, float* sum) {
  for (int64_t i = 0; i < rows * kLanes; i += kLanes)
    for (int64_t q = 0; q < kLanes; ++q) {
      const float power = exp_of_negative((tile[i + q] - shift[q]) * scale);
      // Where nothing counts, the tile and perhaps the shift are -inf, and the power may be anything.
      sum[q] += counts[i + q] > 0.0f ? counts[i + q] * power : 0.0f;
    }
}

TIMECYCLE_VARIANTS
void count_row(float* tile, float* counts, int64_t rows, int32_t first, const int32_t* column, const int32_t* reach,
               float inside, float outside) {
  for (int64_t row = 0; row < rows; ++row) {
    const int32_t x = first + static_cast<int32_t>(row);
    for (int64_t q = 0; q < kLanes; ++q) {
      const int32_t distance = x > column[q] ? x - column[q] : column[q] - x;
      const float count = distance <= reach[q] ? inside : outside;
      counts[row * kLanes + q] = count;
      tile[row * kLanes + q] = count > 0.0f ? tile[row * kLanes + q] : -std::numeric_limits<float>::infinity();
    }
  }
}

TIMECYCLE_VARIANTS
float dot(const float* a, const float* b, int64_t n) {
  constexpr int64_t kSums = 64;  // kept apart, so that loops vectorise and rounding stays small
  float sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums)
    for (int64_t j = 0; j < kSums; ++j) sums[j] += a[i + j] * b[i + j];
  for (int64_t j = 0; i + j < n; ++j) sums[j] += a[i + j] * b[i + j];
  for (int64_t half = kSums / 2; half > 0; half /= 2)
    for (int64_t j = 0; j < half; ++j) sums[j] += sums[j + half];
  return sums[0];
}

TIMECYCLE_VARIANTS
float round_to_bfloat16(const float* values, int64_t n, uint16_t* rounded) {
  constexpr int64_t kSums = 16;
  float sums[kSums] = {};
  for (int64_t first = 0; first < n; first += kSums) {
    const int64_t count = std::min(kSums, n - first);
    for (int64_t j = 0; j < count; ++j) {
      uint32_t bits;
      std::memcpy(&bits, values + first + j, sizeof(bits));
      bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;  // to nearest, ties to even; infinity stays itself
      rounded[first + j] = static_cast<uint16_t>(bits >> 16);
      float back;
      std::memcpy(&back, &bits, sizeof(back));
      sums[j] += (values[first + j] - back) * (values[first + j] - back);
    }
  }
  for (int64_t j = 1; j < kSums; ++j) sums[0] += sums[j];
  return sums[0];
}

}  // namespace timecycle
