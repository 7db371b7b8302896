// The k best keys of a row, in one lane's registers.
#pragma once

#include <climits>
#include <cmath>

#include "chip.h"

namespace timecycle {

constexpr int kInvalidIndex = INT_MAX;  // above every index

// A key of a row as one number: larger is better, which means a larger product, or an equal one with a lower index.
using Rank = int64_t;
constexpr Rank kPaddingRank = INT64_MAX, kWorstRank = INT64_MIN;  // better, and worse, than every key

// Integers with the order of the floats whose bits they are; its own inverse.
ON_DEVICE int32_t ordered(int32_t bits) { return bits ^ (bits >> 31 & 0x7fffffff); }
ON_DEVICE Rank rank_of(float product, int index) {
  const int32_t high = ordered(chip::bits_of(product + 0.0f));  // -0 to 0
  return Rank(uint64_t(uint32_t(high)) << 32 | uint32_t(~index));
}
ON_DEVICE float product_of(Rank rank) { return chip::number_of(ordered(int32_t(rank >> 32))); }
ON_DEVICE int index_of(Rank rank) { return ~int(uint32_t(rank)); }

// Bitonic merge: sorts N ranks that fall and then rise, best first, as if BEFORE better ranks preceded them. Compares
// ranks at distance STEP, then STEP / 2, and so on.
template <int STEP, int BEFORE, int N>
ON_DEVICE void merge(Rank (&ranks)[N]) {
#pragma unroll
  for (int i = BEFORE; i + STEP < BEFORE + N; ++i) {
    if (!(i & STEP)) chip::put_in_order(ranks[i - BEFORE], ranks[i - BEFORE + STEP]);
  }
  if constexpr (STEP > 1) merge<STEP / 2, BEFORE>(ranks);
}

// Odd-even merge sort, best first: merges sorted runs of SORTED ranks into runs of twice that length. Compares ranks at
// distance STEP, then STEP / 2, and so on.
template <int SORTED = 1, int STEP = SORTED, int N>
ON_DEVICE void sort(Rank (&ranks)[N]) {
  static_assert((N & (N - 1)) == 0);
#pragma unroll
  for (int i = 0; i + STEP < N; ++i) {
    const bool first = ((i - STEP % SORTED) & STEP) == 0, same = i / (2 * SORTED) == (i + STEP) / (2 * SORTED);
    if (i >= STEP % SORTED && first && same) chip::put_in_order(ranks[i], ranks[i + STEP]);
  }
  if constexpr (STEP > 1) {
    sort<SORTED, STEP / 2>(ranks);
  } else if constexpr (2 * SORTED < N) {
    sort<2 * SORTED>(ranks);
  }
}

// The k best keys of a row, best first. The first K - k of the K entries are padding.
template <int K>
struct List {
  Rank entry[K];

  ON_DEVICE void clear(int k) {
#pragma unroll
    for (int e = 0; e < K; ++e) entry[e] = e < K - k ? kPaddingRank : rank_of(-INFINITY, kInvalidIndex);
  }

  // Merges N unsorted ranks, at most K, into the list.
  template <int N>
  ON_DEVICE void take(Rank (&ranks)[N]) {
    static_assert(N <= K);
    sort(ranks);
    // The better of the worst entry and the best rank, and so on: the entries are bitonic then.
#pragma unroll
    for (int i = 0; i < N; ++i) entry[K - 1 - i] = max(entry[K - 1 - i], ranks[i]);
    constexpr int kAll = K <= 8 ? 8 : K <= 16 ? 16 : 32;
    merge<kAll / 2, kAll - K>(entry);
  }
};

}  // namespace timecycle
