// The k best keys of a row, in one lane's registers.
#pragma once

#include <climits>
#include <cmath>

#include "chip.h"

namespace timecycle {

constexpr int kNobody = INT_MAX;  // above every index

// A key of a row as one number: larger is better, which is a larger product, or an equal one with a lower index.
using Rank = int64_t;
constexpr Rank kOutOfTheWay = INT64_MAX, kNoRank = INT64_MIN;  // better, and worse, than every key

ON_DEVICE int32_t ordered(int32_t bits) { return bits ^ (bits >> 31 & 0x7fffffff); }  // as the floats they stand for
ON_DEVICE Rank rank_of(float product, int index) {
  const int32_t high = ordered(chip::bits_of(product + 0.0f));  // -0 to 0
  return Rank(uint64_t(uint32_t(high)) << 32 | uint32_t(~index));
}
ON_DEVICE float product_of(Rank rank) { return chip::number_of(ordered(int32_t(rank >> 32))); }
ON_DEVICE int index_of(Rank rank) { return ~int(uint32_t(rank)); }

ON_DEVICE void put_in_order(Rank& better, Rank& worse) {
  const Rank first = better, second = worse;
  const bool swap = second > first;
  better = swap ? second : first;
  worse = swap ? first : second;
}

// Those that are STEP apart, and then half of that, and so on, of N ranks before which there are BEFORE better ones, as
// it were: best first, if they rose and then fell or the other way round [bitonic merge]. Those whose number has the
// bit TURNED are put in the other order.
template <int STEP, int BEFORE, int TURNED, int N>
ON_DEVICE void merge(Rank (&ranks)[N]) {
#pragma unroll
  for (int i = BEFORE; i + STEP < BEFORE + N; ++i) {
    if (i & STEP) continue;
    Rank &one = ranks[i - BEFORE], &other = ranks[i - BEFORE + STEP];
    if (i & TURNED) {
      put_in_order(other, one);
    } else {
      put_in_order(one, other);
    }
  }
  if constexpr (STEP > 1) merge<STEP / 2, BEFORE, TURNED>(ranks);
}

// Best first. N is a power of two [bitonic sort].
template <int SIZE = 2, int N>
ON_DEVICE void sort(Rank (&ranks)[N]) {
  merge<SIZE / 2, 0, SIZE>(ranks);
  if constexpr (SIZE < N) sort<2 * SIZE>(ranks);
}

// The k best keys of a row, best first. Of K entries the first K - k are out of the way.
template <int K>
struct List {
  Rank entry[K];

  ON_DEVICE void clear(int k) {
#pragma unroll
    for (int e = 0; e < K; ++e) entry[e] = e < K - k ? kOutOfTheWay : rank_of(-INFINITY, kNobody);
  }

  // Keeps the best of its own and of N ranks, at most K, which are in no order.
  template <int N>
  ON_DEVICE void take(Rank (&ranks)[N]) {
    static_assert(N <= K);
    sort(ranks);
    // The better of the worst entry and the best rank, and so on: the entries then fall and rise again [bitonic].
#pragma unroll
    for (int i = 0; i < N; ++i) entry[K - 1 - i] = max(entry[K - 1 - i], ranks[i]);
    constexpr int kAll = K <= 8 ? 8 : K <= 16 ? 16 : 32;
    merge<kAll / 2, kAll - K, 0>(entry);
  }
};

}  // namespace timecycle
