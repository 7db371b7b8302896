// Loops over a tile of logits [keys][queries] while it is in cache; compiled as those of column_epilogue.h are.
#pragma once

#include <cstdint>

namespace timecycle {

// Which edges of a tile are dropped: those whose hash is below the threshold.
struct Dropped {
  const uint32_t* rows;  // the hash of each query
  uint32_t first_key, threshold;
};

// MurmurHash3's finaliser.
inline __attribute__((always_inline)) uint32_t finalise(uint32_t word) {
  word = (word ^ (word >> 16)) * 0x85ebca6bu;
  word = (word ^ (word >> 13)) * 0xc2b2ae35u;
  return word ^ (word >> 16);
}

// tile[k][n] *= factor[k], and -inf where an edge is dropped.
void finish_logits(float* tile, int64_t keys, int64_t width, const float* factor, float sharpness);
void drop_logits(float* tile, int64_t keys, int64_t width, const Dropped& dropped);

// largest[n] = the largest of a column, sum[n] = the sum of exp(tile[k][n] - largest[n]); -inf and 0 where all is -inf.
void column_softmax(const float* tile, int64_t keys, int64_t width, float* largest, float* sum);

// tile[k][n] = exp(tile[k][n] - shift[n]).
void exponentiate(float* tile, int64_t keys, int64_t width, const float* shift);

// sum[n] = sum over k of a[k][n] b[k][n].
void column_dots(const float* a, const float* b, int64_t keys, int64_t width, float* sum);

// affinity[k][n] *= (gradient[k][n] + add[n]) * sharpness.
void softmax_gradient(float* affinity, const float* gradient, int64_t keys, int64_t width, const float* add,
                      float sharpness);

// tile[k][n] *= factor[k].
void scale_rows(float* tile, int64_t keys, int64_t width, const float* factor);

}  // namespace timecycle
