// The neighbours kept for a tile of queries, and the softmax denominators beside them, while tiles of keys go by.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "column_epilogue.h"

namespace timecycle {

constexpr float kNone = -std::numeric_limits<float>::infinity();

struct Neighbour {
  float value;    // dot product
  int64_t index;  // slot * M + position
};

// How often a key of a tile takes part for a query: what counts [rows][kLanes] says, or `every` without it.
inline int64_t times_counted(const float* counts, int64_t every, int64_t row, int64_t q) {
  return counts ? static_cast<int64_t>(counts[row * kLanes + q]) : every;
}

// Calls found(row, q) for every 1 in reached [rows][kLanes], row by row, for the first `queries` lanes.
template <typename Found>
void for_each_reached(const uint8_t* reached, int64_t rows, int64_t queries, Found found) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t first = 0; first < queries; first += 8) {
      uint64_t eight;
      std::memcpy(&eight, reached + row * kLanes + first, sizeof(eight));
      for (; eight != 0; eight &= eight - 1) {
        const int64_t q = first + __builtin_ctzll(eight) / 8;
        if (q < queries) found(row, q);
      }
    }
}

class Neighbours {
 public:
  Neighbours(int64_t k, float scale, bool all, bool ties)
      : k_(k), scale_(scale), all_(all), ties_(ties), best_(kLanes * k), tied_(ties ? kLanes : 0) {
    reset();
  }

  void reset() {
    std::fill(best_.begin(), best_.end(), Neighbour{kNone, -1});
    std::fill_n(worst_, kLanes, kNone);
    std::fill_n(largest_, kLanes, kNone);
    std::fill_n(sum_, kLanes, 0.0f);
    for (auto& tied : tied_) tied.clear();
  }

  // Takes in a tile [rows][kLanes] of dot products of consecutive keys, for the first `queries` lanes. counts
  // [rows][kLanes] says how often each takes part; without it, each does `every` times.
  void take(const float* tile, const float* counts, int64_t every, int64_t rows, int64_t first_index, int64_t queries) {
    alignas(64) float tile_largest[kLanes];
    column_maximum(tile, rows, tile_largest);
    int64_t reached = 0;
    for (int64_t q = 0; q < queries; ++q) reached += interesting(tile_largest[q], q);
    // A few queries are cheaper column by column, many row by row.
    if (reached > kFew) {
      column_reached(tile, rows, worst_, ties_, reached_.data());
      for_each_reached(reached_.data(), rows, queries, [&](int64_t row, int64_t q) {
        offer(q, tile[row * kLanes + q], times_counted(counts, every, row, q), first_index + row);
      });
    } else if (reached > 0) {
      for (int64_t q = 0; q < queries; ++q)
        if (interesting(tile_largest[q], q))
          for (int64_t row = 0; row < rows; ++row)
            offer(q, tile[row * kLanes + q], times_counted(counts, every, row, q), first_index + row);
    }
    if (!all_) return;
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

  // Enters a key into the list of query q if it belongs there, `times` times. Keys come by rising index.
  void offer(int64_t q, float value, int64_t times, int64_t index) {
    if (!interesting(value, q)) return;
    add(q, {value, index}, times);
    worst_[q] = best_[q * k_ + k_ - 1].value;
  }

  // The list of query q, best first.
  void list(int64_t q, std::vector<Neighbour>& out) const {
    const auto begin = best_.begin() + q * k_;
    out.assign(begin, std::find_if(begin, begin + k_, [](const Neighbour& n) { return n.index < 0; }));
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
  static constexpr int64_t kFew = 6;

  // Whether a value changes the list of query q. With ties one that equals the k-th does too, unless that is nothing.
  bool interesting(float value, int64_t q) const {
    return value > worst_[q] || (ties_ && value == worst_[q] && value > kNone);
  }

  // Enters a neighbour `times` times into the sorted list of query q. Keys come by rising index, so a newcomer goes
  // behind its equals.
  void add(int64_t q, Neighbour newcomer, int64_t times) {
    Neighbour* list = &best_[q * k_];
    for (; times > 0 && newcomer.value > list[k_ - 1].value; --times) {
      const Neighbour lost = list[k_ - 1];
      int64_t place = k_ - 1;
      for (; place > 0 && newcomer.value > list[place - 1].value; --place) list[place] = list[place - 1];
      list[place] = newcomer;
      if (!ties_) continue;
      if (lost.index >= 0 && lost.value == list[k_ - 1].value)
        tied_[q].push_back(lost);
      else
        tied_[q].clear();
    }
    if (ties_ && times > 0 && newcomer.value == list[k_ - 1].value) tied_[q].insert(tied_[q].end(), times, newcomer);
  }

  int64_t k_;
  float scale_;
  bool all_, ties_;
  std::vector<Neighbour> best_;               // [kLanes][k], best first, -1 behind the last
  std::vector<std::vector<Neighbour>> tied_;  // of each lane, what equals the k-th but has no place
  std::vector<uint8_t> reached_ = std::vector<uint8_t>(kRows * kLanes);
  alignas(64) float worst_[kLanes];    // value of the k-th of each list
  alignas(64) float largest_[kLanes];  // the softmax's running shift
  alignas(64) float sum_[kLanes];      // its denominator under that shift
};

}  // namespace timecycle
