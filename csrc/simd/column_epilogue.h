// What happens to a tile of dot products while it is in cache: running maximum, sum of exponentials, what reaches a
// list, and the list's insertion.
//
// A tile is [keys][kLanes queries], so queries lie along vector lanes: maxima and sums need no horizontal step, and a
// key that reaches nobody's k-th value costs a load and a comparison. Plain loops that the compiler vectorises,
// compiled for several instruction sets of which the loader takes the best the machine has.
#pragma once

#include <cstdint>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(TIMECYCLE_ONE_VARIANT)
#define TIMECYCLE_VARIANTS __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define TIMECYCLE_VARIANTS
#endif

namespace timecycle {

constexpr int64_t kLanes = 64;  // queries of a tile
constexpr int64_t kRows = 64;   // keys of a tile

// A place of a tile whose value reached a threshold.
struct Hit {
  float value;
  int16_t row, lane;
};

// The k largest values of each lane, best first, with their indices. Lists are stored kStep at a time, and what stands
// before the first value is infinite, so that insertion is a loop without branches.
struct SortedLists {
  static constexpr int64_t kStep = 16;
  int64_t k;
  int64_t length;    // stored values of a list: k rounded up to kStep
  float* values;     // [kLanes][kStep + length]; list q begins at q * stride() + kStep
  int32_t* indices;  // likewise, or null
  float* worst;      // [kLanes]: the k-th value
  int64_t stride() const { return kStep + length; }
  int64_t begin(int64_t q) const { return q * stride() + kStep; }
};

// Largest value of each column: tile [rows][kLanes] -> largest [kLanes].
void column_maximum(const float* tile, int64_t rows, float* largest);

// Collects the places with tile[row][q] >= worst[q], row by row, and returns how many there are.
int64_t column_hits(const float* tile, int64_t rows, const float* worst, Hit* hits);

// Enters each value that exceeds the k-th of its list, as often as it counts (counts [rows][kLanes], or `every`
// without), with index first_index + row. A newcomer goes behind its equals, so keys must come by rising index.
void insert_tile(const float* tile, const float* counts, int64_t every, int64_t rows, int32_t first_index,
                 const SortedLists& lists);

// sum[q] += sum over rows of exp((tile[row][q] - shift[q]) * scale).
void column_exp_sum(const float* tile, int64_t rows, const float* shift, float scale, float* sum);

// The same with every term counted counts[row][q] times.
void column_exp_sum(const float* tile, const float* counts, int64_t rows, const float* shift, float scale, float* sum);

// For tiles whose rows are queries: tile[row][lane] = factor[row] * count * exp(tile[row][lane] * scale - shift[row]),
// where count is counts[row][lane], or `every` without counts. A logit may exceed its shift by rounding only.
void row_share(float* tile, const float* counts, float every, int64_t rows, const float* shift, const float* factor,
               float scale);

// How often the keys of one grid row count for each query: the keys are columns first, first + 1, ...; query q stands
// at column[q] and may look half_widths[q] columns aside (-1: not into this row).
void count_row(float* counts, int64_t rows, int32_t first, const int32_t* column, const int32_t* half_widths,
               float inside, float outside);

// tile = -inf where nothing counts, both [rows][kLanes].
void mask_tile(float* tile, const float* counts, int64_t rows);

// <a, b> over n channels.
float dot(const float* a, const float* b, int64_t n);

}  // namespace timecycle
