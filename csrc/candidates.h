// Exact neighbours from products of bytes: keep every key that the error bound cannot rule out, then look again.
//
// With a the product of the rounded features and e its error bound (byte_panel.h), the float product c lies between
// a - e and a + e. Once k keys have a - e >= w, a key with a + e < w cannot be among the k best, now or later. The
// rest, some dozens a query, are multiplied again in float. Not for softmax over all positions, whose denominator would
// carry the error.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "byte_epilogue.h"
#include "neighbours.h"

namespace timecycle {

class Candidates {
 public:
  // `positions` may compete for a place in a list.
  Candidates(int64_t k, int64_t positions)
      : k_(k), most_(kLanes * std::max(8 * k + 128, std::min<int64_t>(positions / 32, 512))), lower_(k) {
    reset();
  }

  void reset() {
    lower_.reset();
    count_ = pruned_ = 0;
    overflown_ = false;
  }

  // Whether the bounds rule out too little: then nothing is kept, and the direct product serves these queries better.
  bool overflown() const { return overflown_; }

  // Takes in a tile [rows][kLanes] of integer products of consecutive keys; counts and every as Neighbours::take.
  void take(const int32_t* tile, const float* counts, int64_t every, const ByteRow* keys, int64_t rows,
            int64_t first_index, int64_t queries, const ByteLanes& lanes, Hit* hits) {
    alignas(64) float error[kLanes], threshold[kLanes];
    byte_errors(keys, rows, lanes, error);
    for (int64_t q = 0; q < kLanes; ++q) {
      threshold[q] = q < queries ? lower_->worst[q] - error[q] : -kNone;
      // Beyond this, sums in float might overflow.
      overflown_ |= q < queries && !(error[q] < 1e30f);
    }
    if (overflown_) return;
    const int64_t found = byte_hits(tile, counts, keys, rows, lanes, threshold, hits);
    if (found == 0) return;
    if (static_cast<int64_t>(candidates_.size()) < count_ + found) candidates_.resize(2 * count_ + found);
    count_ += keep_candidates(hits, found, counts, every, first_index, error, *lower_, &candidates_[count_]);
    if (count_ <= pruned_ + pruned_ / 2 + kRows * kLanes) return;
    count_ = pruned_ = drop_candidates(candidates_.data(), count_, lower_->worst);
    overflown_ = count_ > most_;
  }

  // Memory for decide.
  struct Scratch {
    std::vector<Candidate> sorted;
    std::vector<int32_t> order;
    std::vector<float> exact;
  };

  // Offers to `lists` every key that can be in the list of a query, by rising index: product(q, index) is the float
  // product, times(q, index) how often the key counts.
  template <typename Product, typename Times>
  void decide(int64_t queries, const ByteLanes& lanes, Neighbours& lists, Scratch& scratch, Product product,
              Times times) {
    count_ = drop_candidates(candidates_.data(), count_, lower_->worst);
    // Sort by query, stable.
    int64_t ends[kLanes + 1] = {};
    for (int64_t i = 0; i < count_; ++i) ++ends[candidates_[i].place % kLanes + 1];
    for (int64_t q = 0; q < kLanes; ++q) ends[q + 1] += ends[q];
    scratch.sorted.resize(count_);
    for (int64_t i = 0; i < count_; ++i) scratch.sorted[ends[candidates_[i].place % kLanes]++] = candidates_[i];
    for (int64_t q = 0, begin = 0; q < queries; begin = ends[q++])
      decide_one(q, &scratch.sorted[begin], ends[q] - begin, lanes.unit[q], lists, scratch, product, times);
  }

 private:
  template <typename Product, typename Times>
  void decide_one(int64_t q, const Candidate* candidates, int64_t count, float unit, Neighbours& lists,
                  Scratch& scratch, Product product, Times times) {
    if (count == 0) return;
    const int64_t first = std::min(k_, count);
    std::vector<int32_t>& order = scratch.order;
    std::vector<float>& exact = scratch.exact;
    order.resize(count), exact.resize(count);
    std::iota(order.begin(), order.end(), 0);
    // The k likeliest first: the least of their products is a bound without an error, and spares half of the others.
    std::nth_element(order.begin(), order.begin() + first - 1, order.end(),
                     [&](int32_t a, int32_t b) { return candidates[a].most > candidates[b].most; });
    float least = -kNone;
    for (int64_t i = 0; i < first; ++i) {
      const int32_t one = order[i];
      exact[one] = product(q, candidates[one].place / kLanes);
      least = std::min(least, exact[one]);
    }
    const float enough = first < k_ ? kNone : least - 1e-6f * std::abs(least);
    for (int64_t i = first; i < count; ++i) {
      const int32_t one = order[i];
      exact[one] = candidates[one].most * unit < enough ? kNone : product(q, candidates[one].place / kLanes);
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t index = candidates[i].place / kLanes;
      if (exact[i] > kNone && exact[i] >= enough)
        lists.offer(q, exact[i], times(q, index), static_cast<int32_t>(index));
    }
  }

  int64_t k_, most_;
  ListStorage lower_;  // the k largest lower bounds
  std::vector<Candidate> candidates_;
  int64_t count_ = 0, pruned_ = 0;  // candidates now, and when they were last pruned
  bool overflown_ = false;
};

}  // namespace timecycle
