// topk_affinity's forward pass on the CPU: its entry point, and the sinks for its results.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "sizes.h"
#include "topk_affinity/problem.h"

namespace timecycle {

// How dot products are computed.
enum class Products {
  kFastest,  // as is measured to be fastest on this chip
  kDirect,   // in the features' own type or in float
  kBytes,    // in int8 to find candidates, then in float to decide; for softmax over the top k only
};

// Statistics of a call, for tests and measurements.
struct TopkAffinityReport {
  int64_t bytes = 0;      // lists from candidates of int8 products
  int64_t tightened = 0;  // of these, lists whose bounds were tightened by float products
  int64_t overflown = 0;  // lists with too many candidates, recomputed by direct products
};

struct Neighbor {
  float value;    // dot product
  int64_t index;  // slot * M + position
};

// Receives the lists of the queries as they are completed.
class RowSink {
 public:
  virtual ~RowSink() = default;
  // One list of query n of target b, best first, with its weights. Called from several threads, but for all lists of
  // one query from the same thread, by ascending group.
  virtual void take(int64_t b, int64_t n, int64_t group, const std::vector<Neighbor>& list,
                    const std::vector<float>& weights, float log_denominator) = 0;
};

// Passes the lists of every query to the sink; features are of type Feature.
template <typename Feature>
TopkAffinityReport topk_affinity_cpu(const Problem& problem, Products products, RowSink& sink);

// The direct products of topk_affinity alone, for benchmarks: query [N, D] by keys [M, D] in its tiles and groups.
template <typename Feature>
void tile_product_cpu(int64_t queries, int64_t positions, int64_t channels, const Feature* query, const Feature* keys);

struct TopkAffinityOut {
  float* weights;       // [B, N, groups, kept]
  int64_t* indices;     // [B, N, groups, kept]
  float* denominators;  // [B, N, groups]: log of the softmax denominator; written only if softmax_over_all
};

// Writes weights, indices and denominators: directly, or with keep_ties when all rows are complete and the length of
// the longest is known.
class TopkWriter : public RowSink {
 public:
  // `allocate(kept)` makes the outputs.
  TopkWriter(const Problem& problem, const std::function<TopkAffinityOut(int64_t)>& allocate)
      : p_(problem),
        allocate_(allocate),
        rows_(p_.keep_ties ? checked_product({p_.targets, p_.queries, p_.groups()}) : 0) {
    if (!p_.keep_ties)
      out_ = allocate(kept_ = p_.k);
    else
      denominators_.resize(p_.softmax_over_all ? rows_.size() : 0);
  }

  void take(int64_t b, int64_t n, int64_t group, const std::vector<Neighbor>& list, const std::vector<float>& weights,
            float log_denominator) override {
    const int64_t row = (b * p_.queries + n) * p_.groups() + group;
    if (p_.softmax_over_all) (p_.keep_ties ? denominators_.data() : out_.denominators)[row] = log_denominator;
    if (p_.keep_ties)
      rows_[row] = {list, weights};
    else
      write(row, list, weights);
  }

  void finish() {
    if (!p_.keep_ties) return;
    kept_ = 1;
    for (const Row& row : rows_) kept_ = std::max<int64_t>(kept_, row.list.size());
    out_ = allocate_(kept_);
    for (size_t row = 0; row < rows_.size(); ++row) write(row, rows_[row].list, rows_[row].weights);
    std::copy(denominators_.begin(), denominators_.end(), out_.denominators);
  }

 private:
  struct Row {
    std::vector<Neighbor> list;
    std::vector<float> weights;
  };

  void write(int64_t row, const std::vector<Neighbor>& list, const std::vector<float>& weights) {
    for (int64_t i = 0; i < kept_; ++i) {
      const bool exists = i < static_cast<int64_t>(list.size());
      out_.weights[row * kept_ + i] = exists ? weights[i] : 0.0f;
      out_.indices[row * kept_ + i] = exists ? list[i].index : -1;
    }
  }

  const Problem& p_;
  const std::function<TopkAffinityOut(int64_t)>& allocate_;
  std::vector<Row> rows_;
  std::vector<float> denominators_;
  TopkAffinityOut out_{};
  int64_t kept_ = 0;
};

// Sums the neighbors' labels by their weights, without storing weights or indices: affinity_propagate.
class LabelSink : public RowSink {
 public:
  // labels [G, M, classes]; label_frames [B, T]: the label map of each slot, -1 for none; out [B, N, classes], zeros.
  LabelSink(const Problem& problem, const float* labels, const int64_t* label_frames, int64_t classes, float* out)
      : p_(problem), labels_(labels), label_frames_(label_frames), classes_(classes), out_(out) {}

  void take(int64_t b, int64_t n, int64_t, const std::vector<Neighbor>& list, const std::vector<float>& weights,
            float) override {
    float* out = out_ + (b * p_.queries + n) * classes_;
    for (size_t i = 0; i < list.size(); ++i) {
      const int64_t map = label_frames_[b * p_.slots + list[i].index / p_.positions];
      if (map < 0) continue;
      const float* label = labels_ + (map * p_.positions + list[i].index % p_.positions) * classes_;
      for (int64_t c = 0; c < classes_; ++c) out[c] += weights[i] * label[c];
    }
  }

 private:
  const Problem& p_;
  const float* labels_;
  const int64_t* label_frames_;
  int64_t classes_;
  float* out_;
};

}  // namespace timecycle
