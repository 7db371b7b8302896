// The arguments of topk_affinity. Letters of shapes as in timecycle/ops/topk_affinity.py.
#pragma once

#include <cstdint>
#include <vector>

namespace timecycle {

constexpr int64_t kIndices = int64_t{1} << 31;  // an index, slot * M + position, and k must be below

// Fields are named as in timecycle/ops/problem.py. The tensors are contiguous.
struct Problem {
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

}  // namespace timecycle
