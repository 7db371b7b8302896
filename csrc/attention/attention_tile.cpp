#include "attention/attention_tile.h"

#include <algorithm>
#include <limits>

#include "simd/exponential.h"

namespace timecycle {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

TIMECYCLE_VARIANTS
void scale_rows(float* tile, int64_t keys, int64_t width, const float* factor, float scale) {
  for (int64_t k = 0; k < keys; ++k) {
    const float by = factor[k] * scale;
    for (int64_t n = 0; n < width; ++n) tile[k * width + n] *= by;
  }
}

TIMECYCLE_VARIANTS
void drop_logits(float* tile, int64_t keys, int64_t width, const Dropout& dropout) {
  const uint32_t* rows = dropout.rows;
  const uint32_t threshold = dropout.threshold;
  for (int64_t k = 0; k < keys; ++k) {
    const uint32_t key = (dropout.first_key + static_cast<uint32_t>(k)) * 0x9e3779b9u;
    for (int64_t n = 0; n < width; ++n)
      tile[k * width + n] = hash_finalize(key + rows[n]) < threshold ? -kInfinity : tile[k * width + n];
  }
}

TIMECYCLE_VARIANTS
void column_softmax(const float* tile, int64_t keys, int64_t width, float* largest, float* sum) {
  std::fill_n(largest, width, -kInfinity);
  for (int64_t k = 0; k < keys; ++k)
    for (int64_t n = 0; n < width; ++n) largest[n] = std::max(largest[n], tile[k * width + n]);
  std::fill_n(sum, width, 0.0f);
  for (int64_t k = 0; k < keys; ++k)
    for (int64_t n = 0; n < width; ++n) {
      // If all of a column is -inf, any finite shift gives 0.
      const float shift = largest[n] == -kInfinity ? 0.0f : largest[n];
      sum[n] += exp_or_zero(tile[k * width + n] - shift);
    }
}

TIMECYCLE_VARIANTS
void exponentiate(float* tile, int64_t keys, int64_t width, const float* shift) {
  for (int64_t k = 0; k < keys; ++k)
    for (int64_t n = 0; n < width; ++n) tile[k * width + n] = exp_or_zero(tile[k * width + n] - shift[n]);
}

TIMECYCLE_VARIANTS
void column_dots(const float* a, const float* b, int64_t keys, int64_t width, float* sum) {
  std::fill_n(sum, width, 0.0f);
  for (int64_t k = 0; k < keys; ++k)
    for (int64_t n = 0; n < width; ++n) sum[n] += a[k * width + n] * b[k * width + n];
}

TIMECYCLE_VARIANTS
void softmax_gradient(float* affinity, const float* gradient, int64_t keys, int64_t width, const float* add,
                      float softmax_scale) {
  for (int64_t k = 0; k < keys; ++k)
    for (int64_t n = 0; n < width; ++n) affinity[k * width + n] *= (gradient[k * width + n] + add[n]) * softmax_scale;
}

}  // namespace timecycle
