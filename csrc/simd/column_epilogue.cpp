#include "simd/column_epilogue.h"

#include <algorithm>
#include <limits>

#include "simd/avx512.h"
#include "simd/exponential.h"
#include "simd/hits.h"

namespace timecycle {

TIMECYCLE_VARIANTS
void column_maximum(const float* tile, int64_t rows, float* largest) {
  std::copy_n(tile, kLanes, largest);
  for (int64_t row = 1; row < rows; ++row) {
    const float* values = tile + row * kLanes;
    for (int64_t q = 0; q < kLanes; ++q) largest[q] = values[q] > largest[q] ? values[q] : largest[q];
  }
}

namespace plain {
namespace {

TIMECYCLE_VARIANTS
int64_t column_hits(const float* tile, int64_t rows, const float* worst, Hit* hits) {
  int64_t count = 0;
  alignas(64) uint8_t marked[kLanes];
  for (int64_t row = 0; row < rows; ++row) {
    const float* values = tile + row * kLanes;
    for (int64_t q = 0; q < kLanes; ++q) marked[q] = values[q] >= worst[q];
    count = append_marked(marked, values, row, hits, count);
  }
  return count;
}

TIMECYCLE_VARIANTS
void insert_tile(const float* tile, const float* counts, int64_t every, int64_t rows, int32_t first_index,
                 const SortedLists& lists) {
  Hit hits[kLanes];
  alignas(64) uint8_t marked[kLanes];
  for (int64_t row = 0; row < rows; ++row) {
    const float* values = tile + row * kLanes;
    for (int64_t q = 0; q < kLanes; ++q) marked[q] = values[q] > lists.worst[q];
    const int64_t count = append_marked(marked, values, row, hits, 0);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t q = hits[i].lane;
      int64_t times = times_counted(counts, every, row, q);
      for (; times > 0 && values[q] > lists.worst[q]; --times)
        insert(lists, q, values[q], first_index + static_cast<int32_t>(row));
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

}  // namespace
}  // namespace plain

float dot(const float* a, const float* b, int64_t n) {
#if TIMECYCLE_AVX512
  if (avx512::usable()) return avx512::dot(a, b, n);
#endif
  return plain::dot(a, b, n);
}

int64_t column_hits(const float* tile, int64_t rows, const float* worst, Hit* hits) {
#if TIMECYCLE_AVX512
  if (avx512::usable()) return avx512::column_hits(tile, rows, worst, hits);
#endif
  return plain::column_hits(tile, rows, worst, hits);
}

void insert_tile(const float* tile, const float* counts, int64_t every, int64_t rows, int32_t first_index,
                 const SortedLists& lists) {
#if TIMECYCLE_AVX512
  if (avx512::usable()) return avx512::insert_tile(tile, counts, every, rows, first_index, lists);
#endif
  plain::insert_tile(tile, counts, every, rows, first_index, lists);
}

TIMECYCLE_VARIANTS
void column_exp_sum(const float* tile, int64_t rows, const float* shift, float scale, float* sum) {
  for (int64_t row = 0; row < rows; ++row) {
    const float* values = tile + row * kLanes;
    for (int64_t q = 0; q < kLanes; ++q) sum[q] += exp_of_negative((values[q] - shift[q]) * scale);
  }
}

TIMECYCLE_VARIANTS
void row_share(float* tile, const float* counts, float every, int64_t rows, const float* shift, const float* factor,
               float scale) {
  for (int64_t row = 0; row < rows; ++row) {
    float* values = tile + row * kLanes;
    const float above = shift[row], share = factor[row];
    if (!counts) {
      for (int64_t q = 0; q < kLanes; ++q) values[q] = share * every * exp_of_negative(values[q] * scale - above);
      continue;
    }
    const float* times = counts + row * kLanes;  // what does not count may have any power, but a finite one
    for (int64_t q = 0; q < kLanes; ++q)
      values[q] = times[q] > 0.0f ? share * times[q] * exp_of_negative(values[q] * scale - above) : 0.0f;
  }
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
void count_row(float* counts, int64_t rows, int32_t first, const int32_t* column, const int32_t* half_widths,
               float inside, float outside) {
  for (int64_t row = 0; row < rows; ++row) {
    const int32_t x = first + static_cast<int32_t>(row);
    for (int64_t q = 0; q < kLanes; ++q) {
      const int32_t distance = x > column[q] ? x - column[q] : column[q] - x;
      counts[row * kLanes + q] = distance <= half_widths[q] ? inside : outside;
    }
  }
}

TIMECYCLE_VARIANTS
void mask_tile(float* tile, const float* counts, int64_t rows) {
  for (int64_t i = 0; i < rows * kLanes; ++i)
    tile[i] = counts[i] > 0.0f ? tile[i] : -std::numeric_limits<float>::infinity();
}

}  // namespace timecycle
