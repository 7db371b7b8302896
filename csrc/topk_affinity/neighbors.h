// The neighbours kept for a tile of queries, and the softmax denominators beside them, while tiles of keys go by.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "simd/column_epilogue.h"
#include "simd/hits.h"
#include "sizes.h"

namespace timecycle {

constexpr float kNone = -std::numeric_limits<float>::infinity();

struct Neighbour {
  float value;    // dot product
  int64_t index;  // slot * M + position
};

// Owns the memory of SortedLists.
class ListStorage {
 public:
  explicit ListStorage(int64_t k, bool indexed = true) {
    constexpr int64_t kStep = SortedLists::kStep;
    lists_ = {.k = k, .length = checked_product({k / kStep + (k % kStep != 0), kStep})};
    const int64_t size = checked_product({kLanes, lists_.stride()});
    values_.resize(size);
    indices_.resize(indexed ? size : 0);
    worst_.resize(kLanes);
    lists_.values = values_.data(), lists_.indices = indexed ? indices_.data() : nullptr, lists_.worst = worst_.data();
    reset();
  }
  ListStorage(ListStorage&&) = default;
  ListStorage& operator=(ListStorage&&) = default;

  void reset() {
    std::fill(values_.begin(), values_.end(), kNone);
    std::fill(indices_.begin(), indices_.end(), -1);
    std::fill(worst_.begin(), worst_.end(), kNone);
    for (int64_t q = 0; q < kLanes; ++q) values_[lists_.begin(q) - 1] = -kNone;
  }

  const SortedLists& operator*() const { return lists_; }
  const SortedLists* operator->() const { return &lists_; }

 private:
  SortedLists lists_;
  std::vector<float> values_, worst_;
  std::vector<int32_t> indices_;
};

class Neighbours {
 public:
  Neighbours(int64_t k, float scale, bool all, bool ties)
      : scale_(scale), all_(all), ties_(ties), lists_(k), tied_(ties ? kLanes : 0) {
    reset();
  }

  void reset() {
    lists_.reset();
    std::fill_n(largest_, kLanes, kNone);
    std::fill_n(sum_, kLanes, 0.0f);
    for (auto& tied : tied_) tied.clear();
  }

  // Takes in a tile [rows][kLanes] of dot products of consecutive keys, for the first `queries` lanes. counts
  // [rows][kLanes] says how often each takes part; without it, each does `every` times.
  void take(const float* tile, const float* counts, int64_t every, int64_t rows, int64_t first_index, int64_t queries,
            Hit* hits) {
    alignas(64) float tile_largest[kLanes];
    column_maximum(tile, rows, tile_largest);
    bool reached = false;
    for (int64_t q = 0; q < queries; ++q) reached |= interesting(tile_largest[q], q);
    if (reached && !ties_) insert_tile(tile, counts, every, rows, static_cast<int32_t>(first_index), *lists_);
    if (reached && ties_) {
      const int64_t count = column_hits(tile, rows, lists_->worst, hits);
      for (int64_t i = 0; i < count; ++i)
        offer(hits[i].lane, hits[i].value, times_counted(counts, every, hits[i].row, hits[i].lane),
              static_cast<int32_t>(first_index + hits[i].row));
    }
    if (all_) add_exponentials(tile, counts, every, rows, tile_largest);
  }

  // Enters a key into the list of query q if it belongs there, `times` times. Keys come by rising index.
  void offer(int64_t q, float value, int64_t times, int32_t index) {
    if (!interesting(value, q)) return;
    float* values = lists_->values + lists_->begin(q);
    int32_t* indices = lists_->indices + lists_->begin(q);
    const int64_t last = lists_->k - 1;
    for (; times > 0 && value > values[last]; --times) {
      const Neighbour lost{values[last], indices[last]};
      // Behind its equals.
      const int64_t place =
          std::partition_point(values, values + last, [value](float v) { return v >= value; }) - values;
      std::copy_backward(values + place, values + last, values + last + 1);
      std::copy_backward(indices + place, indices + last, indices + last + 1);
      values[place] = value, indices[place] = index;
      if (!ties_) continue;
      if (lost.index >= 0 && lost.value == values[last])
        tied_[q].push_back(lost);
      else
        tied_[q].clear();
    }
    if (ties_ && times > 0 && value == values[last]) tied_[q].insert(tied_[q].end(), times, {value, index});
    lists_->worst[q] = values[last];
  }

  // The list of query q, best first.
  void list(int64_t q, std::vector<Neighbour>& out) const {
    out.clear();
    for (int64_t i = lists_->begin(q), j = 0; j < lists_->k && lists_->indices[i + j] >= 0; ++j)
      out.push_back({lists_->values[i + j], lists_->indices[i + j]});
    if (!ties_ || out.empty()) return;
    out.insert(out.end(), tied_[q].begin(), tied_[q].end());
    // What fell off the list and what never got on it arrived in turns.
    const float last = out.back().value;
    const auto from = std::find_if(out.begin(), out.end(), [last](const Neighbour& n) { return n.value == last; });
    std::sort(from, out.end(), [](const Neighbour& a, const Neighbour& b) { return a.index < b.index; });
  }

  float log_denominator(int64_t q) const { return sum_[q] > 0.0f ? largest_[q] * scale_ + std::log(sum_[q]) : kNone; }

  // Weights of query q's list, best first, before the share of its slot.
  void weigh(int64_t q, const std::vector<Neighbour>& list, float* weights) const {
    // The best of a list is the largest of all.
    float total = 0.0f;
    for (size_t i = 0; i < list.size(); ++i) {
      weights[i] = std::exp((list[i].value - list[0].value) * scale_);
      total += weights[i];
    }
    if (all_) total = sum_[q];
    for (size_t i = 0; i < list.size(); ++i) weights[i] /= total;
  }

 private:
  // Whether a value changes the list of query q. With ties one that equals the k-th does too, unless that is nothing.
  bool interesting(float value, int64_t q) const {
    const float worst = lists_->worst[q];
    return value > worst || (ties_ && value == worst && value > kNone);
  }

  void add_exponentials(const float* tile, const float* counts, int64_t every, int64_t rows,
                        const float* tile_largest) {
    for (int64_t q = 0; q < kLanes; ++q) {
      if (!(tile_largest[q] > largest_[q])) continue;
      sum_[q] *= std::exp((largest_[q] - tile_largest[q]) * scale_);  // exp(-inf) = 0 at the first
      largest_[q] = tile_largest[q];
    }
    if (counts) {
      column_exp_sum(tile, counts, rows, largest_, scale_, sum_);
    } else if (every == 1) {
      column_exp_sum(tile, rows, largest_, scale_, sum_);
    } else {
      float once[kLanes] = {};
      column_exp_sum(tile, rows, largest_, scale_, once);
      for (int64_t q = 0; q < kLanes; ++q) sum_[q] += static_cast<float>(every) * once[q];
    }
  }

  float scale_;
  bool all_, ties_;
  ListStorage lists_;
  std::vector<std::vector<Neighbour>> tied_;  // of each lane, what equals the k-th but has no place
  alignas(64) float largest_[kLanes];         // the softmax's running shift
  alignas(64) float sum_[kLanes];             // its denominator under that shift
};

}  // namespace timecycle
