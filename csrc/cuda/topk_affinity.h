// topk_affinity's forward pass in CUDA: from features to the candidate lists of each query, without materializing the
// affinity matrix.
//
// A block takes 128 queries and streams the keys of some slots past them, 128 at a time, on the tensor cores. Each warp
// processes 32 rows of products while they are in its registers: it accumulates the softmax and keeps a list of the k
// best keys of every row. A query gets a list or two from every block that has some of its keys. They are merged by the
// Triton kernels that merge the lists of Triton's own scan.
//
// There is one block a multiprocessor, and every block gets the same number of patches of keys, of some targets at a
// time (work.cuh).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace timecycle {

constexpr int kPatch = 128;    // queries, and keys, multiplied at a time
constexpr int kLargestK = 20;  // of k: the lists fit into registers
constexpr int kChunk = 64;     // channels copied and multiplied at a time: 128 bytes, as wide as shared memory
constexpr int kChunkBytes = kPatch * kChunk * 2;  // bytes of a chunk of a patch

enum class Dtype { bfloat16, float16 };

// The grid of positions; without a neighborhood one row of all of them.
struct Extent {
  int height, width;
};

// A call; fields as in timecycle/ops/problem.py where they mean the same. Sizes and strides in elements; letters of
// shapes as in timecycle/ops/topk_affinity.py.
struct Problem {
  const void* query;            // [B, N, D], channels side by side
  const void* bank;             // [F, M, D], likewise
  const int64_t* frames;        // [B, T], -1 for an empty slot
  const int64_t* multiplicity;  // [B, T, 2]: how often keys count inside and outside the neighborhood
  const int32_t*
      before;        // [query patches + 1]: key patches seen by the query patches before, by the neighborhood alone
  float* values;     // out [B, S, N, k]: products of the kept keys, best first, -inf where there are fewer
  int32_t* indices;  // out [B, S, N, k]: t * M + m
  float* tops;       // out [B, S, N] if softmax_over_all: the largest product; must be filled with -inf
  float* sums;       // out [B, S, N] if softmax_over_all: sum of count * exp((product - top) / temperature)
  int64_t targets, bank_frames;  // B, F
  Extent queries, positions;     // N, M; equal with a neighborhood
  int64_t query_b, query_n, bank_f, bank_m;
  int slots, lists, parts, rounds;  // T; lists that a block makes of a query; S = lists * parts, times T unless
                                    // `joint`; rounds of targets
  int channels, k;                  // D, neighbors kept
  int rows, columns, limit;         // inside the neighborhood: dy < rows, dx <= columns, dy^2 + dx^2 <= limit
  float softmax_scale_log2;         // log2(e) / temperature
  Dtype dtype;
  bool neighborhood;
  bool joint;             // one list for all slots, else one a slot
  bool softmax_over_all;  // whether the softmax is over all keys
};

// Lists that a block makes of a query: on Ampere two warps share a row, each with half of the keys.
constexpr int lists_of_a_block(bool hopper) { return hopper ? 1 : 2; }

// Launch on that many blocks, at most one a multiprocessor.
cudaError_t topk_affinity_sm80(const Problem& p, int blocks, cudaStream_t stream);
cudaError_t topk_affinity_sm90(const Problem& p, int blocks, cudaStream_t stream);

}  // namespace timecycle
