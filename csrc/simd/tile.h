// Loops over tiles of dot products: maximum, sum of exponentials, multiplicity.
//
// A tile is [keys][kLanes queries], so that queries are vector lanes and reductions over keys need no horizontal step.
// These are plain loops (variants.h); loops.h has those that are also written in AVX-512 intrinsics.
#pragma once

#include <cstdint>

#include "simd/variants.h"

namespace timecycle {

constexpr int64_t kLanes = 64;  // queries of a tile
constexpr int64_t kRows = 64;   // most keys of a tile

// How often each key of a tile counts for each query: per_entry [rows][kLanes], or if that is null, `uniform`.
struct TileMultiplicity {
  const float* per_entry;
  int64_t uniform;

  TIMECYCLE_INLINE int64_t of(int64_t row, int64_t q) const {
    return per_entry ? static_cast<int64_t>(per_entry[row * kLanes + q]) : uniform;
  }
};

// Largest value of each column: tile [rows][kLanes] -> largest [kLanes].
void column_maximum(const float* tile, int64_t rows, float* largest);

// sum[q] += sum over rows of exp((tile[row][q] - shift[q]) * scale).
void column_exp_sum(const float* tile, int64_t rows, const float* shift, float scale, float* sum);

// The same with every term multiplied by multiplicity[row][q].
void column_exp_sum(const float* tile, const float* multiplicity, int64_t rows, const float* shift, float scale,
                    float* sum);

// For tiles whose rows are queries and whose lanes are keys:
//     tile[row][lane] = factor[row] * multiplicity * exp(tile[row][lane] * scale - shift[row]).
// Logits must not exceed their shift by more than rounding.
void row_exponentials(float* tile, TileMultiplicity multiplicity, int64_t rows, const float* shift, const float* factor,
                      float scale);

// Multiplicity [rows][kLanes] of the keys of one grid row, columns first, first + 1, ...: `inside` where the key is at
// most half_width[q] columns from column[q] (-1: never), else `outside`.
void fill_multiplicity(float* multiplicity, int64_t rows, int32_t first, const int32_t* column,
                       const int32_t* half_width, float inside, float outside);

// tile = -inf where the multiplicity is 0, both [rows][kLanes].
void mask_tile(float* tile, const float* multiplicity, int64_t rows);

}  // namespace timecycle
