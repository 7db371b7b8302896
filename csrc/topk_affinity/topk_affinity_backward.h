// The gradient of topk_affinity: formula in timecycle/ops/topk_affinity_backward.py.
#pragma once

#include <cstdint>
#include <vector>

#include "topk_affinity/problem.h"

namespace timecycle {

// The outputs of the forward pass, and the gradient of its weights.
struct TopkAffinityGradient {
  const float* gradient;      // [B, N, groups, kept], of the weights
  const float* weights;       // [B, N, groups, kept]
  const int64_t* indices;     // [B, N, groups, kept]
  const float* denominators;  // [B, N, groups]; read only if softmax_over_all
  int64_t kept;               // neighbors in each group
};

// The kept keys of every query, and the part of their logits' gradients that depends on the kept keys alone.
class KeptKeys {
 public:
  KeptKeys(const Problem& problem, const TopkAffinityGradient& in);

  // G * softmax_scale of query n of target b and a group; G is the sum of weight * gradient over the group's kept keys.
  float mean(int64_t b, int64_t n, int64_t group) const { return means_[(b * p_.queries + n) * p_.groups() + group]; }

  // Calls visit(position, factor) for each kept key of query n of target b in a slot. factor is the gradient of their
  // dot product: all of it for softmax_over "topk", the part w g * softmax_scale for "all".
  template <typename Visit>
  void for_each(int64_t b, int64_t n, int64_t slot, Visit visit) const {
    const int64_t group = p_.joint ? 0 : slot, row = (b * p_.queries + n) * p_.groups() + group;
    const float common = p_.softmax_over_all ? 0.0f : means_[row] * filled_[b];
    for (int64_t i = row * in_.kept; i < (row + 1) * in_.kept; ++i) {
      const int64_t position = in_.indices[i] - slot * p_.positions;
      if (in_.indices[i] < 0 || position < 0 || position >= p_.positions) continue;
      visit(position, in_.weights[i] * (in_.gradient[i] * p_.softmax_scale - common));
    }
  }

 private:
  const Problem& p_;
  const TopkAffinityGradient& in_;
  std::vector<float> means_;  // [B, N, groups]
  // [B]: the number of slots that are not empty, by which the weights of a slot's softmax were divided; 1 if `joint`.
  std::vector<float> filled_;
};

// Writes d_query [B, N, D] and d_bank [F, M, D], contiguous. Sums are float, and reproducible with a fixed number of
// threads.
template <typename Feature>
void topk_affinity_backward_cpu(const Problem& problem, const TopkAffinityGradient& in, Feature* d_query,
                                Feature* d_bank);

// The same for softmax_over "all", where every logit has a gradient.
template <typename Feature>
void topk_affinity_backward_all(const Problem& problem, const TopkAffinityGradient& in, const KeptKeys& kept,
                                const Feature* query, const Feature* bank, Feature* d_query, Feature* d_bank);

// A slot that holds a frame of the bank.
struct SlotOfTarget {
  int64_t target, slot;
};

// For each frame of the bank [F], the slots that hold it, by ascending target and slot.
std::vector<std::vector<SlotOfTarget>> slots_of_frames(const Problem& problem);

}  // namespace timecycle
