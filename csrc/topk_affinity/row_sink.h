// Where the lists of the queries go: out as weights and indices, or straight into labels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "sizes.h"
#include "topk_affinity/neighbors.h"
#include "topk_affinity/topk_affinity.h"

namespace timecycle {

class RowSink {
 public:
  virtual ~RowSink() = default;
  // Takes one list of query n of target b, best first, with its weights. Any thread, but the lists of one query come
  // from one thread, by rising group.
  virtual void take(int64_t b, int64_t n, int64_t group, const std::vector<Neighbour>& list,
                    const std::vector<float>& weights, float log_denominator) = 0;
};

// Weights, indices and denominators, written in place, or with ties gathered first, because how long the rows are shows
// only at the end.
class TopkWriter : public RowSink {
 public:
  TopkWriter(const TopkAffinity& shape, const std::function<TopkAffinityOut(int64_t)>& allocate)
      : s_(shape),
        allocate_(allocate),
        rows_(s_.keep_ties ? checked_product({s_.targets, s_.queries, s_.groups()}) : 0) {
    if (!s_.keep_ties)
      out_ = allocate(kept_ = s_.k);
    else
      denominators_.resize(s_.softmax_over_all ? rows_.size() : 0);
  }

  void take(int64_t b, int64_t n, int64_t group, const std::vector<Neighbour>& list, const std::vector<float>& weights,
            float log_denominator) override {
    const int64_t row = (b * s_.queries + n) * s_.groups() + group;
    if (s_.softmax_over_all) (s_.keep_ties ? denominators_.data() : out_.denominators)[row] = log_denominator;
    if (s_.keep_ties)
      rows_[row] = {list, weights};
    else
      put(row, list, weights);
  }

  void finish() {
    if (!s_.keep_ties) return;
    kept_ = 1;
    for (const Row& row : rows_) kept_ = std::max<int64_t>(kept_, row.list.size());
    out_ = allocate_(kept_);
    for (size_t row = 0; row < rows_.size(); ++row) put(row, rows_[row].list, rows_[row].weights);
    std::copy(denominators_.begin(), denominators_.end(), out_.denominators);
  }

 private:
  struct Row {
    std::vector<Neighbour> list;
    std::vector<float> weights;
  };

  void put(int64_t row, const std::vector<Neighbour>& list, const std::vector<float>& weights) {
    for (int64_t i = 0; i < kept_; ++i) {
      const bool exists = i < static_cast<int64_t>(list.size());
      out_.weights[row * kept_ + i] = exists ? weights[i] : 0.0f;
      out_.indices[row * kept_ + i] = exists ? list[i].index : -1;
    }
  }

  const TopkAffinity& s_;
  const std::function<TopkAffinityOut(int64_t)>& allocate_;
  std::vector<Row> rows_;
  std::vector<float> denominators_;
  TopkAffinityOut out_{};
  int64_t kept_ = 0;
};

// Labels of the kept keys, summed by their weights: propagate_labels without weights and indices in between.
class LabelSink : public RowSink {
 public:
  // labels [G, M, classes]; label_frames [B, T] says which map a slot carries, -1 none; out [B, N, classes] is zero.
  LabelSink(const TopkAffinity& shape, const float* labels, const int64_t* label_frames, int64_t classes, float* out)
      : s_(shape), labels_(labels), label_frames_(label_frames), classes_(classes), out_(out) {}

  void take(int64_t b, int64_t n, int64_t, const std::vector<Neighbour>& list, const std::vector<float>& weights,
            float) override {
    float* out = out_ + (b * s_.queries + n) * classes_;
    for (size_t i = 0; i < list.size(); ++i) {
      const int64_t map = label_frames_[b * s_.slots + list[i].index / s_.positions];
      if (map < 0) continue;
      const float* label = labels_ + (map * s_.positions + list[i].index % s_.positions) * classes_;
      for (int64_t c = 0; c < classes_; ++c) out[c] += weights[i] * label[c];
    }
  }

 private:
  const TopkAffinity& s_;
  const float* labels_;
  const int64_t* label_frames_;
  int64_t classes_;
  float* out_;
};

}  // namespace timecycle
