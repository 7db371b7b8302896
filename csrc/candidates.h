// Exact neighbours from low-precision products: keep every key that the error bound cannot rule out, then look again.
//
// With q~, k~ rounded to bfloat16 and a = <q~, k~> accumulated in float,
//     |a - c| <= e = |q - q~| max|k| + |q~| max|k - k~| + rounding of both sums,
// where c is the float product. If a_k is the k-th largest a so far, a key with a < a_k - 2e has c < a_k - e, which is
// at most the k-th largest c: it can be dropped, now and for good. The rest, a few dozen a query, are multiplied again
// in float. Not for softmax over all positions, whose denominator would carry the low precision.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "column_epilogue.h"
#include "neighbours.h"

namespace timecycle {

class Candidates {
 public:
  explicit Candidates(int64_t k) : k_(k), best_(kLanes * k), seen_(kLanes), pruned_(kLanes) { reset(); }

  // The bound e of a lane.
  void set_error(int64_t q, float error) { error_[q] = error; }

  void reset() {
    std::fill(best_.begin(), best_.end(), kNone);
    std::fill(pruned_.begin(), pruned_.end(), 0);
    std::fill_n(floor_, kLanes, kNone);
    for (auto& seen : seen_) seen.clear();
  }

  // As Neighbours::take.
  void take(const float* tile, const float* counts, int64_t every, int64_t rows, int64_t first_index, int64_t queries) {
    column_reached(tile, rows, floor_, /*equal=*/true, reached_);
    for_each_reached(reached_, rows, queries, [&](int64_t row, int64_t q) {
      const float value = tile[row * kLanes + q];
      const int64_t times = times_counted(counts, every, row, q);
      if (value >= floor_[q] && times > 0) add(q, {value, first_index + row}, times);
    });
  }

  // Hands every candidate of query q to `look(index, times)`, by rising index.
  template <typename Look>
  void finish(int64_t q, Look look) {
    prune(q);
    for (const Seen& seen : seen_[q]) look(seen.neighbour.index, seen.times);
  }

 private:
  struct Seen {
    Neighbour neighbour;
    int64_t times;
  };

  void add(int64_t q, Neighbour neighbour, int64_t times) {
    seen_[q].push_back({neighbour, times});
    float* best = &best_[q * k_];
    for (; times > 0 && neighbour.value > best[k_ - 1]; --times) {
      int64_t place = k_ - 1;
      for (; place > 0 && neighbour.value > best[place - 1]; --place) best[place] = best[place - 1];
      best[place] = neighbour.value;
      floor_[q] = best[k_ - 1] - 2.0f * error_[q];
    }
    if (static_cast<int64_t>(seen_[q].size()) > 2 * pruned_[q] + 4 * k_) prune(q);
  }

  void prune(int64_t q) {
    auto& seen = seen_[q];
    const float floor = floor_[q];
    seen.erase(std::remove_if(seen.begin(), seen.end(), [floor](const Seen& s) { return s.neighbour.value < floor; }),
               seen.end());
    pruned_[q] = static_cast<int64_t>(seen.size());
  }

  int64_t k_;
  std::vector<float> best_;              // [kLanes][k] largest low-precision products, best first
  std::vector<std::vector<Seen>> seen_;  // of each lane, by rising index
  std::vector<int64_t> pruned_;          // length of each when it was last pruned
  uint8_t reached_[kRows * kLanes];
  alignas(64) float floor_[kLanes];  // what a product must reach to matter
  float error_[kLanes] = {};
};

}  // namespace timecycle
