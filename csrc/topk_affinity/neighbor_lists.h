// The k best keys of each query of a tile, and the softmax denominators, updated tile by tile of keys (online softmax).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "simd/loops.h"
#include "sizes.h"
#include "topk_affinity/topk_affinity.h"

namespace timecycle {

constexpr float kNegInf = -std::numeric_limits<float>::infinity();

// Owns the memory of SortedLists.
class ListStorage {
 public:
  explicit ListStorage(int64_t k, bool indexed = true) {
    constexpr int64_t kStep = SortedLists::kStep;
    lists_ = {.k = k, .length = checked_product({k / kStep + (k % kStep != 0), kStep})};
    const int64_t size = checked_product({kLanes, lists_.stride()});
    values_.resize(size);
    indices_.resize(indexed ? size : 0);
    kth_.resize(kLanes);
    lists_.values = values_.data(), lists_.indices = indexed ? indices_.data() : nullptr, lists_.kth = kth_.data();
    reset();
  }
  ListStorage(ListStorage&&) = default;
  ListStorage& operator=(ListStorage&&) = default;

  void reset() {
    std::fill(values_.begin(), values_.end(), kNegInf);
    std::fill(indices_.begin(), indices_.end(), -1);
    std::fill(kth_.begin(), kth_.end(), kNegInf);
    for (int64_t q = 0; q < kLanes; ++q) values_[lists_.begin(q) - 1] = -kNegInf;
  }

  const SortedLists& operator*() const { return lists_; }
  const SortedLists* operator->() const { return &lists_; }

 private:
  SortedLists lists_;
  std::vector<float> values_, kth_;
  std::vector<int32_t> indices_;
};

class NeighborLists {
 public:
  explicit NeighborLists(const Problem& p)
      : scale_(p.softmax_scale),
        softmax_over_all_(p.softmax_over_all),
        keep_ties_(p.keep_ties),
        lists_(p.k),
        tied_(p.keep_ties ? kLanes : 0) {
    reset();
  }

  void reset() {
    lists_.reset();
    std::fill_n(largest_, kLanes, kNegInf);
    std::fill_n(sum_, kLanes, 0.0f);
    for (auto& tied : tied_) tied.clear();
  }

  // Adds a tile [rows][kLanes] of dot products with consecutive keys, for the first `queries` lanes. `found` is scratch
  // memory for as many entries as the tile has.
  void take(const float* tile, TileMultiplicity multiplicity, int64_t rows, int64_t first_index, int64_t queries,
            TileCandidate* found) {
    alignas(64) float tile_largest[kLanes];
    column_maximum(tile, rows, tile_largest);
    bool reached = false;
    for (int64_t q = 0; q < queries; ++q) reached |= belongs(tile_largest[q], q);
    if (reached && !keep_ties_)
      loops().insert_tile(tile, multiplicity, rows, static_cast<int32_t>(first_index), *lists_);
    if (reached && keep_ties_) {
      const int64_t count = loops().tile_candidates(tile, rows, lists_->kth, found);
      for (const TileCandidate* one = found; one < found + count; ++one)
        offer(one->lane, one->value, multiplicity.of(one->row, one->lane),
              static_cast<int32_t>(first_index + one->row));
    }
    if (softmax_over_all_) add_exponentials(tile, multiplicity, rows, tile_largest);
  }

  // Inserts a key `times` times into the list of query q if it is among the k best. Keys must come by ascending index.
  void offer(int64_t q, float value, int64_t times, int32_t index) {
    if (!belongs(value, q)) return;
    float* values = lists_->values + lists_->begin(q);
    int32_t* indices = lists_->indices + lists_->begin(q);
    const int64_t last = lists_->k - 1;
    for (; times > 0 && value > values[last]; --times) {
      const Neighbor lost{values[last], indices[last]};
      // After equal values.
      const int64_t place =
          std::partition_point(values, values + last, [value](float v) { return v >= value; }) - values;
      std::copy_backward(values + place, values + last, values + last + 1);
      std::copy_backward(indices + place, indices + last, indices + last + 1);
      values[place] = value, indices[place] = index;
      if (!keep_ties_) continue;
      if (lost.index >= 0 && lost.value == values[last])
        tied_[q].push_back(lost);
      else
        tied_[q].clear();
    }
    if (keep_ties_ && times > 0 && value == values[last]) tied_[q].insert(tied_[q].end(), times, {value, index});
    lists_->kth[q] = values[last];
  }

  // The list of query q, best first.
  void list(int64_t q, std::vector<Neighbor>& out) const {
    out.clear();
    for (int64_t i = lists_->begin(q), j = 0; j < lists_->k && lists_->indices[i + j] >= 0; ++j)
      out.push_back({lists_->values[i + j], lists_->indices[i + j]});
    if (!keep_ties_ || out.empty()) return;
    out.insert(out.end(), tied_[q].begin(), tied_[q].end());
    // Ties are not sorted: those that lost their place in the list and those that never had one alternate.
    const float last = out.back().value;
    const auto from = std::find_if(out.begin(), out.end(), [last](const Neighbor& n) { return n.value == last; });
    std::sort(from, out.end(), [](const Neighbor& a, const Neighbor& b) { return a.index < b.index; });
  }

  float log_denominator(int64_t q) const { return sum_[q] > 0.0f ? largest_[q] * scale_ + std::log(sum_[q]) : kNegInf; }

  // Softmax weights of query q's list, best first; they sum to 1 over the list, or over all keys.
  void weigh(int64_t q, const std::vector<Neighbor>& list, float* weights) const {
    // The first of a list is the largest of all keys, so that no exponential overflows.
    float total = 0.0f;
    for (size_t i = 0; i < list.size(); ++i) {
      weights[i] = std::exp((list[i].value - list[0].value) * scale_);
      total += weights[i];
    }
    if (softmax_over_all_) total = sum_[q];
    for (size_t i = 0; i < list.size(); ++i) weights[i] /= total;
  }

 private:
  // Whether a value changes the list of query q. With ties one that equals the k-th does too, unless that is -inf.
  bool belongs(float value, int64_t q) const {
    const float kth = lists_->kth[q];
    return value > kth || (keep_ties_ && value == kth && value > kNegInf);
  }

  void add_exponentials(const float* tile, TileMultiplicity multiplicity, int64_t rows, const float* tile_largest) {
    for (int64_t q = 0; q < kLanes; ++q) {
      if (!(tile_largest[q] > largest_[q])) continue;
      sum_[q] *= std::exp((largest_[q] - tile_largest[q]) * scale_);  // exp(-inf) = 0 at the first
      largest_[q] = tile_largest[q];
    }
    if (multiplicity.per_entry) {
      column_exp_sum(tile, multiplicity.per_entry, rows, largest_, scale_, sum_);
    } else if (multiplicity.uniform == 1) {
      column_exp_sum(tile, rows, largest_, scale_, sum_);
    } else {
      float once[kLanes] = {};
      column_exp_sum(tile, rows, largest_, scale_, once);
      for (int64_t q = 0; q < kLanes; ++q) sum_[q] += static_cast<float>(multiplicity.uniform) * once[q];
    }
  }

  float scale_;
  bool softmax_over_all_, keep_ties_;
  ListStorage lists_;
  std::vector<std::vector<Neighbor>> tied_;  // for each lane, keys beyond the k that equal the k-th
  alignas(64) float largest_[kLanes];        // the softmax's running shift
  alignas(64) float sum_[kLanes];            // its denominator under that shift
};

}  // namespace timecycle
