// topk_affinity: what the binding hands to a kernel, and what a kernel leaves behind. Letters as in timecycle/ops.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace timecycle {

class RowSink;

constexpr int64_t kIndices = int64_t{1} << 31;  // an index, slot * M + position, and k must be below

// Fields are named as in timecycle/ops/problem.py. The tensors are contiguous.
struct TopkAffinity {
  const void* query;            // [B, N, D]; float, bfloat16 or half
  const void* bank;             // [F, M, D], likewise
  const int64_t* frames;        // [B, T]; -1 is an empty slot
  const int64_t* multiplicity;  // [B, T, 2]: how often keys count inside and outside the neighborhood
  int64_t targets;              // B
  int64_t queries;              // N
  int64_t channels;             // D
  int64_t bank_frames;          // F
  int64_t positions;            // M
  int64_t slots;                // T; T * M < kIndices
  int64_t k;                    // neighbors kept, per slot (scope "frame") or over all slots ("joint")
  float softmax_scale;          // logit = dot * softmax_scale, 1 / temperature
  bool joint;                   // scope == "joint"
  bool softmax_over_all;        // softmax_over == "all"
  bool keep_ties;               // ties == "all"
  int64_t grid_width;           // columns of the grid; 0 without a neighborhood
  // half_widths[d] is the largest |dx| inside the neighborhood d rows away; rows beyond its end are outside.
  std::vector<int64_t> half_widths;

  int64_t groups() const { return joint ? 1 : slots; }  // lists kept per query
};

struct TopkAffinityOut {
  float* weights;       // [B, N, groups, kept]
  int64_t* indices;     // [B, N, groups, kept]
  float* denominators;  // [B, N, groups]: log of the softmax denominator; written only if softmax_over_all
};

// How the products of a call are formed.
enum class Products {
  kFastest,  // whichever is measured to be fastest here
  kDirect,   // in the features' own type or in float
  kBytes,    // of bytes, which leave candidates that float products decide; softmax over the top k only
};

// What a call did, for tests and measurements.
struct TopkAffinityReport {
  int64_t bytes = 0;      // lists decided between candidates of byte products
  int64_t tightened = 0;  // of which bounds were tightened by float products on the way
  int64_t overflown = 0;  // lists whose candidates were too many, and which were found directly
};

// Hands the lists of every query to the sink; features are of type Feature.
template <typename Feature>
TopkAffinityReport topk_affinity_cpu(const TopkAffinity& problem, Products products, RowSink& sink);

// The direct products of topk_affinity alone, for benchmarks: query [N, D] by keys [M, D] in its tiles and groups.
template <typename Feature>
void tile_product_cpu(int64_t queries, int64_t positions, int64_t channels, const Feature* query, const Feature* keys);

}  // namespace timecycle
