// Exact neighbors from int8 products: keep every key that the error bound cannot rule out, then decide in float.
//
// With a the product of the quantized features and e its error bound (panels.h), the float product c lies between a - e
// and a + e. Once k keys have a - e >= w, a key with a + e < w cannot be among the k best. If many candidates remain,
// float products of the k most likely keys give a tighter w, without the error e. The candidates left at the end, a few
// dozen per query, are multiplied again in float. Not for softmax over all keys: its denominator would have the error.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <numeric>
#include <vector>

#include "simd/loops.h"
#include "sizes.h"
#include "topk_affinity/neighbor_lists.h"

namespace timecycle {

// The candidates of a tile of queries. `exact` computes float products: exact.product(q, index) is that of lane q with
// a key, exact.multiplicity(q, index) how often the key counts for it; exact.prefetch(index) loads a key into the
// cache.
class Candidates {
 public:
  // `positions` keys compete for a list. With more than one candidate in 24 keys the float products cost more than
  // direct products with all keys; with more than 1024 candidates per query they take too much memory.
  Candidates(int64_t k, int64_t positions)
      : k_(k),
        most_(
            checked_product({kLanes, std::max(checked_product({8, k + 16}), std::min<int64_t>(positions / 24, 1024))})),
        lower_(k, /*indexed=*/false) {
    reset();
  }

  void reset() {
    lower_.reset();
    seen_ = count_ = pruned_ = tightened_ = 0;
    tighten_at_ = kLanes * (4 * k_ + 64);
    overflown_ = false;
  }

  // Whether there were too many candidates: they are incomplete then, and direct products must be used instead.
  bool overflown() const { return overflown_; }

  // Number of lists whose bounds were tightened by float products.
  int64_t tightened() const { return tightened_; }

  // Adds a tile [rows][kLanes] of integer products with consecutive keys, as NeighborLists::take.
  template <typename Exact>
  void take(const int32_t* tile, TileMultiplicity multiplicity, const ByteRow* keys, int64_t rows, int64_t first_index,
            int64_t queries, const ByteLanes& lanes, TileCandidate* found, Exact& exact) {
    alignas(64) float error[kLanes], threshold[kLanes];
    byte_errors(keys, rows, lanes, error);
    for (int64_t q = 0; q < kLanes; ++q) {
      threshold[q] = q < queries ? lower_->kth[q] - error[q] : -kNegInf;
      // Above this, sums in float might overflow.
      overflown_ |= q < queries && !(error[q] < 1e30f);
    }
    if (overflown_) return;
    seen_ += rows;
    const int64_t count = loops().byte_candidates(tile, multiplicity.per_entry, keys, rows, lanes, threshold, found);
    if (count == 0) return;
    if (static_cast<int64_t>(candidates_.size()) < count_ + count)
      candidates_.resize(count_ + count + kRows * kLanes / 4);
    count_ += loops().keep_candidates(found, count, multiplicity, first_index, error, *lower_, &candidates_[count_]);
    if (count_ > pruned_ + pruned_ / 4 + kRows * kLanes / 4) prune(queries, lanes, exact);
  }

  // Memory for the float products.
  struct Scratch {
    std::vector<Candidate> sorted;
    std::vector<int32_t> order;
    std::vector<float> product;
  };

  // Inserts every key that can be in the list of a query into `lists`, by ascending index.
  template <typename Exact>
  void decide(int64_t queries, const ByteLanes& lanes, NeighborLists& lists, Exact& exact) {
    count_ = drop_candidates(candidates_.data(), count_, lower_->kth);
    for_each_query(queries, exact.scratch, [&](int64_t q, const Candidate* candidates, int64_t count) {
      decide_one(q, candidates, count, lanes.unit[q], lists, exact);
    });
  }

 private:
  // Calls visit(q, candidates, count) with the candidates of each query, by ascending index.
  template <typename Visit>
  void for_each_query(int64_t queries, Scratch& scratch, Visit visit) {
    int64_t ends[kLanes + 1] = {};
    for (int64_t i = 0; i < count_; ++i) ++ends[candidates_[i].place % kLanes + 1];
    for (int64_t q = 0; q < kLanes; ++q) ends[q + 1] += ends[q];
    scratch.sorted.resize(count_);
    for (int64_t i = 0; i < count_; ++i) scratch.sorted[ends[candidates_[i].place % kLanes]++] = candidates_[i];
    for (int64_t q = 0, begin = 0; q < queries; begin = ends[q++])
      visit(q, scratch.sorted.data() + begin, ends[q] - begin);
  }

  template <typename Exact>
  void prune(int64_t queries, const ByteLanes& lanes, Exact& exact) {
    count_ = drop_candidates(candidates_.data(), count_, lower_->kth);
    if (count_ > tighten_at_) {
      for_each_query(queries, exact.scratch, [&](int64_t q, const Candidate* candidates, int64_t count) {
        tighten(q, candidates, count, lanes.unit[q], exact);
      });
      count_ = drop_candidates(candidates_.data(), count_, lower_->kth);
      tighten_at_ = std::max(tighten_at_, 2 * count_);
      tightened_ = queries;
    }
    pruned_ = count_;
    overflown_ = count_ > most_ || (seen_ >= 2048 && count_ > seen_ * kLanes / 4);
  }

  // Computes float products with the min(k, count) most likely candidates of a query, in scratch.product at the
  // candidates' places, which scratch.order lists first. Returns the smallest product.
  template <typename Exact>
  float likeliest(int64_t q, const Candidate* candidates, int64_t count, Exact& exact) {
    const int64_t first = std::min(k_, count);
    std::vector<int32_t>& order = exact.scratch.order;
    order.resize(count), exact.scratch.product.resize(count);
    std::iota(order.begin(), order.end(), 0);
    std::nth_element(order.begin(), order.begin() + first - 1, order.end(),
                     [&](int32_t a, int32_t b) { return candidates[a].upper_bound > candidates[b].upper_bound; });
    float least = -kNegInf;
    for (int64_t i = 0; i < first; ++i) {
      if (i + 1 < first) exact.prefetch(candidates[order[i + 1]].place / kLanes);
      exact.scratch.product[order[i]] = exact.product(q, candidates[order[i]].place / kLanes);
      least = std::min(least, exact.scratch.product[order[i]]);
    }
    return least;
  }

  // Replaces the lower bounds of a query by k float products, if those are higher.
  template <typename Exact>
  void tighten(int64_t q, const Candidate* candidates, int64_t count, float unit, Exact& exact) {
    if (count < k_) return;
    const float least = below(likeliest(q, candidates, count, exact)) / unit;
    if (!(least > lower_->kth[q])) return;
    float* bounds = lower_->values + lower_->begin(q);
    for (int64_t i = 0; i < k_; ++i) bounds[i] = below(exact.scratch.product[exact.scratch.order[i]]) / unit;
    std::sort(bounds, bounds + k_, std::greater<>());
    std::fill(bounds + k_, bounds + lower_->length, kNegInf);
    lower_->kth[q] = bounds[k_ - 1];
  }

  template <typename Exact>
  void decide_one(int64_t q, const Candidate* candidates, int64_t count, float unit, NeighborLists& lists,
                  Exact& exact) {
    if (count == 0) return;
    const float least = likeliest(q, candidates, count, exact), enough = count < k_ ? kNegInf : below(least);
    std::vector<float>& product = exact.scratch.product;
    for (int64_t i = std::min(k_, count); i < count; ++i) {
      const int32_t one = exact.scratch.order[i];
      if (i + 1 < count) exact.prefetch(candidates[exact.scratch.order[i + 1]].place / kLanes);
      product[one] =
          candidates[one].upper_bound * unit < enough ? kNegInf : exact.product(q, candidates[one].place / kLanes);
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t index = candidates[i].place / kLanes;
      if (product[i] > kNegInf && product[i] >= enough)
        lists.offer(q, product[i], exact.multiplicity(q, index), static_cast<int32_t>(index));
    }
  }

  // A little less, to compare values that were rounded when divided by or multiplied with a query's unit.
  static float below(float value) { return value - 1e-6f * std::abs(value); }

  int64_t k_, most_;
  ListStorage lower_;  // the k largest lower bounds
  std::vector<Candidate> candidates_;
  int64_t seen_ = 0, count_ = 0, pruned_ = 0;  // keys; candidates now, and when they were last pruned
  int64_t tighten_at_ = 0, tightened_ = 0;
  bool overflown_ = false;
};

}  // namespace timecycle
