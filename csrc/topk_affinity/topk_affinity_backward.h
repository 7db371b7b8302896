// The gradient of topk_affinity; timecycle/ops/topk_affinity_backward.py has the formula.
#pragma once

#include <cstdint>
#include <vector>

#include "topk_affinity/topk_affinity.h"

namespace timecycle {

// What the forward left behind, and the gradient of its weights.
struct TopkAffinityGradient {
  const float* gradient;      // [B, N, groups, kept], of the weights
  const float* weights;       // [B, N, groups, kept]
  const int64_t* indices;     // [B, N, groups, kept]
  const float* denominators;  // [B, N, groups]; read only if softmax_over_all
  int64_t kept;               // neighbours in each group
};

// The kept keys of every query, and what the gradient of their logits owes to their own weights.
class KeptKeys {
 public:
  KeptKeys(const TopkAffinity& shape, const TopkAffinityGradient& in);

  // G * scale of query n of target b and a group, G the sum of weight times gradient over the group's kept keys.
  float mean(int64_t b, int64_t n, int64_t group) const { return means_[(b * s_.queries + n) * s_.groups() + group]; }

  // Calls found(position, factor) for each kept key that query n of target b has in a slot, where factor is the
  // gradient of the dot product with it: all of it for "topk", and the part w g * softmax_scale for "all".
  template <typename Found>
  void of_slot(int64_t b, int64_t n, int64_t slot, Found found) const {
    const int64_t group = s_.joint ? 0 : slot, row = (b * s_.queries + n) * s_.groups() + group;
    const float back = s_.softmax_over_all ? 0.0f : means_[row] * filled_[b];
    for (int64_t i = row * in_.kept; i < (row + 1) * in_.kept; ++i) {
      const int64_t position = in_.indices[i] - slot * s_.positions;
      if (in_.indices[i] < 0 || position < 0 || position >= s_.positions) continue;
      found(position, in_.weights[i] * (in_.gradient[i] * s_.softmax_scale - back));
    }
  }

 private:
  const TopkAffinity& s_;
  const TopkAffinityGradient& in_;
  std::vector<float> means_;   // [B, N, groups]
  std::vector<float> filled_;  // [B]: shares are weights times this
};

// d_query [B, N, D] and d_bank [F, M, D], contiguous, of the features' type. The outputs are written whole, whatever
// they held. Sums are float; the same call with as many threads gives the same bits.
template <typename Feature>
void topk_affinity_backward_cpu(const TopkAffinity& problem, const TopkAffinityGradient& in, Feature* d_query,
                                Feature* d_bank);

// By softmax_over. "topk": the kept keys are all there is. "all": they are part of a dense product.
template <typename Feature>
void gradient_of_kept(const TopkAffinity& shape, const TopkAffinityGradient& in, const KeptKeys& kept,
                      const Feature* query, const Feature* bank, Feature* d_query, Feature* d_bank);
template <typename Feature>
void gradient_of_all(const TopkAffinity& shape, const TopkAffinityGradient& in, const KeptKeys& kept,
                     const Feature* query, const Feature* bank, Feature* d_query, Feature* d_bank);

// A slot that holds a frame of the bank.
struct Use {
  int64_t target, slot;
};

// Of each frame of the bank [F], the slots that hold it, by rising target and slot.
std::vector<std::vector<Use>> uses_of(const TopkAffinity& shape);

}  // namespace timecycle
