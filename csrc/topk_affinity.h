// topk_affinity: what the binding hands to a kernel, and what a kernel leaves behind. Letters as in timecycle/ops.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace timecycle {

class RowSink;

constexpr int64_t kIndices = int64_t{1} << 31;  // an index, slot * M + position, and k must be below

struct TopkAffinity {
  int64_t targets;    // B
  int64_t queries;    // N
  int64_t channels;   // D
  int64_t frames;     // F
  int64_t positions;  // M
  int64_t slots;      // T; T * M < kIndices
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

// How the products of a call are formed.
enum class Products {
  kFastest,  // whichever is measured to be fastest here
  kDirect,   // in the features' own type or in float
  kBytes,    // of bytes, which leave candidates that float products decide; softmax over the kept only
};

// What a call did, for tests and measurements.
struct TopkAffinityReport {
  int64_t bytes = 0;      // lists decided between candidates of byte products
  int64_t tightened = 0;  // of which bounds were tightened by float products on the way
  int64_t overflown = 0;  // lists whose candidates were too many, and which were found directly
};

// Hands the lists of every query to the sink: query [B, N, D] and bank [F, M, D] are contiguous float, bfloat16 or
// half; frames [B, T]; copies [B, T, 2].
template <typename Feature>
TopkAffinityReport topk_affinity_cpu(const TopkAffinity& shape, const Feature* query, const Feature* bank,
                                     const int64_t* frames, const int64_t* copies, Products products, RowSink& sink);

// The direct products of topk_affinity alone, for benchmarks: query [N, D] by keys [M, D] in its tiles and groups.
template <typename Feature>
void tile_product_cpu(int64_t queries, int64_t positions, int64_t channels, const Feature* query, const Feature* keys);

}  // namespace timecycle
