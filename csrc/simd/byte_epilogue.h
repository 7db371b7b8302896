// The loops of candidates.h: features to bytes, and what reaches a bound in a tile of products of bytes.
#pragma once

#include <cmath>
#include <cstdint>

#include "simd/column_epilogue.h"

namespace timecycle {

// A feature vector x as bytes u in 0 .. 255: x ~ low + scale * u, and what bounds its products.
struct ByteRow {
  float scale, low;
  float sum;       // of the approximation
  float norm;      // |x|
  float residual;  // |x - approximation|
  float parts;     // at least |scale * u| + |low * 1|: no partial sum of a product exceeds the product of both parts
};

// Rounds n floats to bytes, between the smallest and the largest.
ByteRow round_to_bytes(const float* values, int64_t n, uint8_t* bytes);

// The row of n channels from the sum of its bytes, and of the squares of values and of what rounding lost.
inline ByteRow make_byte_row(int64_t n, float scale, float low, int32_t sum, float norm, float residual) {
  const float count = static_cast<float>(n), length = std::sqrt(norm), lost = std::sqrt(residual);
  return {.scale = scale,
          .low = low,
          .sum = count * low + scale * static_cast<float>(sum),
          .norm = length,
          .residual = lost,
          .parts = length + lost + 2.0f * std::abs(low) * std::sqrt(count)};
}

// A tile of queries beside it: the product of a key with query q is unit[q] times
//     scale * integer + low * total[q] + sum * offset[q]          (scale, low, sum of the key)
// and may be wrong by unit[q] * (residual[q] * |k| + norm[q] * |k - k~| + parts[q] * parts of the key * 2^-20).
struct ByteLanes {
  alignas(64) float unit[kLanes];
  alignas(64) float total[kLanes];
  alignas(64) float offset[kLanes];
  alignas(64) float norm[kLanes];
  alignas(64) float residual[kLanes];
  alignas(64) float parts[kLanes];
};

// Error bounds of the products of some keys with each query, in its unit.
void byte_errors(const ByteRow* keys, int64_t rows, const ByteLanes& lanes, float* error);

// Collects the places of a tile of integer products [rows][kLanes] whose product is at least threshold[q], among those
// that count (counts [rows][kLanes]; all do without), row by row, and returns how many there are.
int64_t byte_hits(const int32_t* tile, const float* counts, const ByteRow* keys, int64_t rows, const ByteLanes& lanes,
                  const float* threshold, Hit* hits);

// A key that may be among the k best of a query.
struct Candidate {
  float most;      // its product is at most this, in the query's unit
  uint32_t place;  // index * kLanes + lane
};
constexpr int64_t kCandidateIndices = int64_t{1} << 26;  // an index must be below

// Writes the hits whose upper bound reaches the k-th largest lower bound, and enters their lower bounds, as often as
// they count, into `lower`. Returns how many were written.
int64_t keep_candidates(const Hit* hits, int64_t count, const float* counts, int64_t every, int64_t first_index,
                        const float* error, const SortedLists& lower, Candidate* out);

// Drops candidates whose upper bound no longer reaches the k-th largest lower bound; returns how many are left.
int64_t drop_candidates(Candidate* candidates, int64_t count, const float* worst);

}  // namespace timecycle
