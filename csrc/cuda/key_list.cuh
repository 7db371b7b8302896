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

// The k best keys of a row, best first. Of K entries the first K - k are out of the way.
template <int K>
struct List {
  Rank entry[K];
  chip::One one;

  ON_DEVICE void clear(int k) {
#pragma unroll
    for (int e = 0; e < K; ++e) entry[e] = e < K - k ? kOutOfTheWay : rank_of(-INFINITY, kNobody);
  }

  // From the last entry on: each that is worse moves to the place behind it.
  ON_DEVICE void insert(Rank rank) {
    Rank dropped = 0;
#pragma unroll
    for (int e = K - 1; e >= 0; --e) chip::go_ahead(rank, entry[e], e == K - 1 ? dropped : entry[e + 1], one);
  }
};

}  // namespace timecycle
