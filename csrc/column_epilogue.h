// What happens to a tile of dot products while it is in cache: running maximum, sum of exponentials, k largest.
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

// Largest value of each column: tile [rows][kLanes] -> largest [kLanes].
void column_maximum(const float* tile, int64_t rows, float* largest);

// reached[row][q] = 1 where tile[row][q] > worst[q] (>= with `equal`), else 0.
void column_reached(const float* tile, int64_t rows, const float* worst, bool equal, uint8_t* reached);

// sum[q] += sum over rows of exp((tile[row][q] - shift[q]) * scale).
void column_exp_sum(const float* tile, int64_t rows, const float* shift, float scale, float* sum);

// The same with every term counted counts[row][q] times.
void column_exp_sum(const float* tile, const float* counts, int64_t rows, const float* shift, float scale, float* sum);

// tile[row][q] = factor[q] * count * exp(tile[row][q] * scale - shift[q]), where count is counts[row][q], or `every`
// without counts. A logit may exceed its shift by rounding only.
void column_share(float* tile, const float* counts, float every, int64_t rows, const float* shift, const float* factor,
                  float scale);

// total += part, both [rows][kLanes].
void add_tile(const float* part, int64_t rows, float* total);

// How often the keys of one grid row count for each query, and -inf for those that do not: the keys are columns first,
// first + 1, ...; query q stands at column[q] and may look reach[q] columns aside (-1: not into this row).
void count_row(float* tile, float* counts, int64_t rows, int32_t first, const int32_t* column, const int32_t* reach,
               float inside, float outside);

// <a, b> over n channels.
float dot(const float* a, const float* b, int64_t n);

// Rounds n floats to bfloat16, and returns the sum of the squared differences.
float round_to_bfloat16(const float* values, int64_t n, uint16_t* rounded);

}  // namespace timecycle
