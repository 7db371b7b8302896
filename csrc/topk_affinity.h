// topk_affinity: what the binding hands to a kernel, and what a kernel leaves behind. Letters as in timecycle/ops.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace timecycle {

struct TopkAffinity {
  int64_t targets;    // B
  int64_t queries;    // N
  int64_t channels;   // D
  int64_t frames;     // F
  int64_t positions;  // M
  int64_t slots;      // T
  int64_t k;          // of Select: per slot ("frame") or in all ("joint")
  float scale;        // logit = dot * scale
  bool joint;         // scope == "joint"
  bool all;           // normalise == "all"
  bool ties;          // ties == "all"
  int64_t width;      // of the region's grid; 0 without a region
  // reach[d] is the largest distance of columns allowed in a row d away; rows beyond its end are out of reach.
  std::vector<int64_t> reach;

  int64_t groups() const { return joint ? 1 : slots; }  // lists kept per query
};

struct TopkAffinityOut {
  float* weights;       // [B, N, groups, kept]
  int64_t* indices;     // [B, N, groups, kept]
  float* denominators;  // [B, N, groups]: log of the softmax denominator; written only for `all`
};

// query [B, N, D] and bank [F, M, D] are contiguous float, bfloat16 or half; frames [B, T]; copies [B, T, 2].
// `allocate(kept)` is called once and gives the outputs: kept is k, or with `ties` the length of the longest list.
template <typename Feature>
void topk_affinity_cpu(const TopkAffinity& shape, const Feature* query, const Feature* bank, const int64_t* frames,
                       const int64_t* copies, const std::function<TopkAffinityOut(int64_t kept)>& allocate);

// The products of topk_affinity alone, for benchmarks: query [N, D] by keys [M, D] in its tiles and groups.
template <typename Feature>
void tile_product_cpu(int64_t queries, int64_t positions, int64_t channels, const Feature* query, const Feature* keys);

}  // namespace timecycle
