// topk_affinity: what the binding hands to a kernel, and what a kernel leaves behind. Letters as in timecycle/ops.
#pragma once

#include <cstdint>

namespace timecycle {

struct TopkAffinity {
  int64_t targets;    // B
  int64_t queries;    // N
  int64_t channels;   // D
  int64_t positions;  // M
  int64_t slots;      // T
  int64_t kept;       // k of Select, per slot ("frame") or in all ("joint")
  float scale;        // logit = dot * scale
  bool joint;         // scope == "joint"
  bool all;           // normalise == "all"
};

// query [B, N, D] and bank [F, M, D] are contiguous float, bfloat16 or half; frames [B, T]; weights and indices
// [B, N, K] with K = joint ? kept : slots * kept.
template <typename Feature>
void topk_affinity_cpu(const TopkAffinity& shape, const Feature* query, const Feature* bank, const int64_t* frames,
                       float* weights, int64_t* indices);

}  // namespace timecycle
