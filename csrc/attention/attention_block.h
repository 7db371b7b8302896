// A block of attention: some queries of some samples, whose logits with all keys are held at once, within a bound.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "attention/attention.h"
#include "attention/attention_tile.h"
#include "simd/rows.h"
#include "sizes.h"

namespace timecycle {

constexpr int64_t kChunk = 128;                 // keys of a tile
constexpr int64_t kHeld = int64_t{1} << 19;     // logits of a block: 2 MB, and in the gradient as much again
constexpr int64_t kFewest = 64;                 // queries of a block, if there are so many
constexpr int64_t kPartial = int64_t{1} << 21;  // floats of partial sums
constexpr int64_t kTasks = 16;                  // into which sums are divided, whatever the number of threads

// C [M][N] = A [M][K] B [K][N], plus C with `add`; the rows are lda, ldb and ldc apart.
inline void multiply(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
                     float* c, int64_t ldc, bool add) {
  if (m > 0 && n > 0 && k > 0) at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, a, b, c);
}

// Calls function(i), which may use multiply, for 0 <= i < count on all threads.
template <typename Function>
void for_each(int64_t count, const Function& function) {
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) function(i);
    at::native::cpublas::brgemm_release(true);
  });
}

// Samples first .. last - 1, queries begin .. end - 1. A block with only a part of the queries has one sample.
struct AttentionBlock {
  int64_t first, last, begin, end;
  int64_t samples() const { return last - first; }
  int64_t width() const { return end - begin; }
};

// All blocks, sample by sample. The division depends on shapes alone, and so do the bits of the sums.
inline std::vector<AttentionBlock> attention_blocks(const AttentionProblem& problem) {
  const int64_t together =
      std::max<int64_t>(1, kHeld / std::max<int64_t>(1, checked_product({problem.keys, problem.queries})));
  const int64_t most = std::max(kFewest, kHeld / problem.keys);
  const int64_t parts = (problem.queries + most - 1) / most;
  std::vector<AttentionBlock> blocks;
  for (int64_t b = 0; b < problem.samples; b += together)
    for (int64_t part = 0; part < parts; ++part)
      blocks.push_back({b, std::min(problem.samples, b + together), problem.queries * part / parts,
                        problem.queries * (part + 1) / parts});
  return blocks;
}

// The rows of the output to which a block's queries add with one of the shifts, and the first of these queries.
struct Overlap {
  int64_t row, count, query;  // the query counted from the block's first
};

inline Overlap overlap(const AttentionProblem& problem, const AttentionBlock& block, int64_t s) {
  const int64_t row = std::max<int64_t>(0, block.begin - problem.shifts[s]);
  return {row, std::min(problem.rows(), block.end - problem.shifts[s]) - row, row + problem.shifts[s] - block.begin};
}

// The logits of a block, keys by queries: [M][width] for each sample.
class BlockLogits {
 public:
  explicit BlockLogits(const AttentionProblem& problem) : p_(problem) {}

  // Loads a block's queries.
  void load(const AttentionBlock& block) {
    block_ = block;
    const int64_t width = block.width(), size = width * p_.channels;
    held_.resize(checked_product({block.samples(), p_.keys, width}));
    queries_.resize(block.samples() * size);
    hashes_.resize(p_.threshold ? block.samples() * width : 0);
    for_each(block.samples(), [&](int64_t i) {
      transpose(query(block.first + i), width, p_.channels, width, queries_.data() + i * size);
      if (!p_.threshold) return;
      const uint32_t row = static_cast<uint32_t>((block.first + i) * p_.queries + block.begin);
      for (int64_t n = 0; n < width; ++n)
        hashes_[i * width + n] = hash_finalize(row + static_cast<uint32_t>(n) + hash_finalize(p_.seed));
    });
  }

  // Writes the logits of keys m .. m + count - 1 and returns them.
  float* compute(int64_t b, int64_t m, int64_t count) {
    const int64_t width = block_.width(), i = b - block_.first;
    float* tile = at(b, m);
    multiply(count, width, p_.channels, p_.key + (b * p_.keys + m) * p_.channels, p_.channels,
             queries_.data() + i * width * p_.channels, width, tile, width, false);
    finish_logits(tile, count, width, p_.scale + b * p_.keys + m, p_.softmax_scale);
    if (p_.threshold)
      drop_logits(tile, count, width, {hashes_.data() + i * width, static_cast<uint32_t>(m), p_.threshold});
    return tile;
  }

  // The logits of a sample from key m on.
  float* at(int64_t b, int64_t m) { return held_.data() + ((b - block_.first) * p_.keys + m) * block_.width(); }

  const float* query(int64_t b) const { return p_.query + (b * p_.queries + block_.begin) * p_.channels; }

 private:
  const AttentionProblem& p_;
  AttentionBlock block_{};
  std::vector<float> held_, queries_;  // queries [D][width] of each sample
  std::vector<uint32_t> hashes_;
};

// What to subtract from a query's logits before exp: its lse, or +inf if it has no key (all dropped).
inline float softmax_shift(float lse) {
  return lse == -std::numeric_limits<float>::infinity() ? std::numeric_limits<float>::infinity() : lse;
}

}  // namespace timecycle
