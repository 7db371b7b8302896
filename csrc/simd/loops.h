// The hottest loops. Each is one template (loops_template.h) with two instances: plain C++ that the compiler vectorizes
// (loops_plain.cpp), and AVX-512 intrinsics (loops_avx512.cpp). Both give the same candidates and lists; their dot
// products differ in the order of summation.
#pragma once

#include <cmath>
#include <cstdint>

#include "simd/tile.h"

namespace timecycle {

// An entry of a tile that is at least its query's threshold.
struct TileCandidate {
  float value;
  int16_t row, lane;
};

// The k largest values of each lane, best first, with their indices. Lists are padded to a multiple of kStep, and the
// element before the first value is +inf, so that insertion is a loop without branches.
struct SortedLists {
  static constexpr int64_t kStep = 16;
  int64_t k;
  int64_t length;    // k rounded up to a multiple of kStep
  float* values;     // [kLanes][kStep + length]; list q begins at begin(q)
  int32_t* indices;  // likewise, or null
  float* kth;        // [kLanes]: the k-th value
  int64_t stride() const { return kStep + length; }
  int64_t begin(int64_t q) const { return q * stride() + kStep; }
};

// A feature vector x quantized to bytes u in 0 .. 255: x ~ low + scale * u, and the terms of its products' error bound.
struct ByteRow {
  float scale, low;
  float sum;       // of the approximation
  float norm;      // |x|
  float residual;  // |x - approximation|
  float parts;     // at least |scale * u| + |low * 1|: partial sums of a product are below the product of both parts
};

// A tile of quantized queries: the product of a key with query q is unit[q] times
//     scale * integer + low * total[q] + sum * offset[q]          (scale, low, sum of the key)
// with an error of at most unit[q] * (residual[q] * |k| + norm[q] * |k - k~| + parts[q] * parts of the key * 2^-20).
struct ByteLanes {
  alignas(64) float unit[kLanes];
  alignas(64) float total[kLanes];
  alignas(64) float offset[kLanes];
  alignas(64) float norm[kLanes];
  alignas(64) float residual[kLanes];
  alignas(64) float parts[kLanes];
};

// A key that may be among the k best of a query.
struct Candidate {
  float upper_bound;  // of its product, divided by the query's unit
  uint32_t place;     // index * kLanes + lane; index < kCandidateIndices
};
constexpr int64_t kCandidateIndices = int64_t{1} << 26;

struct Loops {
  // <a, b> over n channels.
  float (*dot)(const float* a, const float* b, int64_t n);

  // out [16][stride] = the transpose of the first 16 x 16 of tile [16][columns].
  void (*transpose_block)(const float* tile, int64_t columns, int64_t stride, float* out);

  // Collects the entries with tile[row][q] >= threshold[q], row by row, and returns how many there are.
  int64_t (*tile_candidates)(const float* tile, int64_t rows, const float* threshold, TileCandidate* out);

  // Inserts each value above the k-th of its list, multiplicity times, with index first_index + row. A value goes after
  // equal values, so keys must come by ascending index.
  void (*insert_tile)(const float* tile, TileMultiplicity multiplicity, int64_t rows, int32_t first_index,
                      const SortedLists& lists);

  // Quantizes n floats to bytes: 0 for the smallest, 255 for the largest.
  ByteRow (*quantize)(const float* values, int64_t n, uint8_t* bytes);

  // As tile_candidates for a tile of integer products, without entries whose multiplicity [rows][kLanes] is 0; null
  // means that all count.
  int64_t (*byte_candidates)(const int32_t* tile, const float* multiplicity, const ByteRow* keys, int64_t rows,
                             const ByteLanes& lanes, const float* threshold, TileCandidate* out);

  // Writes the candidates whose upper bound is at least the k-th largest lower bound, and inserts their lower bounds,
  // multiplicity times, into `lower`. Returns how many were written.
  int64_t (*keep_candidates)(const TileCandidate* found, int64_t count, TileMultiplicity multiplicity,
                             int64_t first_index, const float* error, const SortedLists& lower, Candidate* out);
};

// AVX-512's loops if the CPU has it and it is not switched off, else the plain ones.
const Loops& loops();

// For tests.
void switch_avx512_off(bool off);

// Error bounds of the products of some keys with each query, divided by its unit.
void byte_errors(const ByteRow* keys, int64_t rows, const ByteLanes& lanes, float* error);

// Drops candidates whose upper bound is below the k-th largest lower bound, kth[q]; returns how many are left.
int64_t drop_candidates(Candidate* candidates, int64_t count, const float* kth);

}  // namespace timecycle
