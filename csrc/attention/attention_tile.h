// Loops over a tile of logits [keys][queries] while it is in cache: plain loops (simd/variants.h).
#pragma once

#include <cstdint>

#include "simd/variants.h"

namespace timecycle {

// Edge dropout (timecycle/ops/attention.py): an edge whose hash is below the threshold is dropped.
struct Dropout {
  const uint32_t* rows;  // [width]: the hash of each query
  uint32_t first_key, threshold;
};

// The finalizer of MurmurHash3.
TIMECYCLE_INLINE uint32_t hash_finalize(uint32_t word) {
  word = (word ^ (word >> 16)) * 0x85ebca6bu;
  word = (word ^ (word >> 13)) * 0xc2b2ae35u;
  return word ^ (word >> 16);
}

// tile[k][n] *= factor[k] * scale.
void scale_rows(float* tile, int64_t keys, int64_t width, const float* factor, float scale = 1.0f);

// tile[k][n] = -inf where an edge is dropped.
void drop_logits(float* tile, int64_t keys, int64_t width, const Dropout& dropout);

// largest[n] = max over k of tile[k][n], sum[n] = sum over k of exp(tile[k][n] - largest[n]); -inf and 0 if all of a
// column is -inf.
void column_softmax(const float* tile, int64_t keys, int64_t width, float* largest, float* sum);

// tile[k][n] = exp(tile[k][n] - shift[n]).
void exponentiate(float* tile, int64_t keys, int64_t width, const float* shift);

// sum[n] = sum over k of a[k][n] b[k][n].
void column_dots(const float* a, const float* b, int64_t keys, int64_t width, float* sum);

// affinity[k][n] *= (gradient[k][n] + add[n]) * softmax_scale.
void softmax_gradient(float* affinity, const float* gradient, int64_t keys, int64_t width, const float* add,
                      float softmax_scale);

}  // namespace timecycle
