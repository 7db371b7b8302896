// topk_affinity's forward pass in CUDA: from features to candidate lists of each query, without materializing the
// affinity matrix.
//
// A block multiplies 128 queries by the keys of some slots, 128 at a time, on the tensor cores. Each warp processes 32
// rows of products in its registers: it accumulates the softmax and finds candidates for the list of the k best keys of
// every row. A query gets one or two lists from every block that has some of its keys; the Triton kernels that merge
// the lists of Triton's own scan merge them.
//
// There is one block per multiprocessor, and all get the same number of patches of keys (work.cuh).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace timecycle {

constexpr int kPatch = 128;    // queries, and keys, multiplied at a time
constexpr int kLargestK = 20;  // largest k whose lists fit into registers
constexpr int kChunk = 64;     // channels copied and multiplied at a time: 128 bytes, as wide as shared memory
constexpr int kChunkBytes = kPatch * kChunk * 2;  // bytes of a chunk of a patch

enum class Dtype { bfloat16, float16 };

// The grid of positions; without a neighborhood a single row.
struct Extent {
  int height, width;
};

// A call; fields as in timecycle/ops/problem.py where they mean the same. Sizes and strides in elements; letters of
// shapes as in timecycle/ops/topk_affinity.py.
struct Problem {
  const void* query;            // [B, N, D], channels contiguous
  const void* bank;             // [F, M, D], likewise
  const int64_t* frames;        // [B, T], -1 for an empty slot
  const int64_t* multiplicity;  // [B, T, 2]: how often keys count inside and outside the neighborhood
  // [query patches + 1]: the number of key patches inside the neighborhoods of the query patches before.
  const int32_t* before;
  float* values;                 // out [B, S, N, k]: products of the kept keys, best first, -inf if there are fewer
  int32_t* indices;              // out [B, S, N, k]: t * M + m
  float* tops;                   // out [B, S, N] if softmax_over_all: the largest product; must be filled with -inf
  float* sums;                   // out [B, S, N] if softmax_over_all: sum of count * exp((product - top) / temperature)
  int64_t targets, bank_frames;  // B, F
  Extent queries, positions;     // N, M; equal with a neighborhood
  int64_t query_b, query_n, bank_f, bank_m;
  // T; lists that a block makes of a query; S = lists * parts, times T unless `joint`; rounds of targets (work.cuh).
  int slots, lists, parts, rounds;
  int channels, k;           // D, neighbors kept
  int rows, columns, limit;  // inside the neighborhood: dy < rows, dx <= columns, dy^2 + dx^2 <= limit
  float softmax_scale_log2;  // log2(e) / temperature
  Dtype dtype;
  bool neighborhood;
  bool joint;             // one list for all slots, else one per slot
  bool softmax_over_all;  // whether the softmax is over all keys
};

// Lists that a block makes of a query: on Ampere two warps share a row, each with half of the keys.
constexpr int lists_of_a_block(bool hopper) { return hopper ? 1 : 2; }

// `blocks`: at most one per multiprocessor.
cudaError_t topk_affinity_sm80(const Problem& p, int blocks, cudaStream_t stream);
cudaError_t topk_affinity_sm90(const Problem& p, int blocks, cudaStream_t stream);

}  // namespace timecycle
