// What happens to a tile of logits while it is in cache: running maximum, sum of exponentials, k largest.
//
// A tile is [keys][kLanes queries], so queries lie along vector lanes: maxima and sums need no horizontal step, and a
// key whose logits reach nobody's k-th value costs a load and a comparison. Plain loops that the compiler vectorises,
// compiled for several instruction sets of which the loader takes the best the machine has.
#pragma once

#include <cstdint>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define TIMECYCLE_VARIANTS __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define TIMECYCLE_VARIANTS
#endif

namespace timecycle {

constexpr int64_t kLanes = 64;  // queries of a tile
constexpr int64_t kRows = 64;   // keys of a tile

// Largest value of each column: tile [rows][kLanes] -> largest [kLanes].
void column_maximum(const float* tile, int64_t rows, float* largest);

// sum[q] += sum over rows of exp((tile[row][q] - shift[q]) * scale).
void column_exp_sum(const float* tile, int64_t rows, const float* shift, float scale, float* sum);

// total += part, both [rows][kLanes].
void add_tile(const float* part, int64_t rows, float* total);

// Puts the values of column q that exceed the last of the sorted list [kept] into it; equal values keep their order of
// arrival, so lower key indices stay in front.
void insert_column(const float* tile, int64_t rows, int64_t q, int64_t first_index, int64_t kept, float* values,
                   int64_t* indices);

}  // namespace timecycle
