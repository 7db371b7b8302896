// A block of attention: some queries of some samples. Memory is bounded by holding the logits of one block at a time.
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

constexpr int64_t kChunk = 128;                     // keys of a tile
constexpr int64_t kBlockLogits = int64_t{1} << 19;  // 2 MB; the backward pass holds as many gradients
constexpr int64_t kLeastQueries = 64;               // of a block, if there are so many

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

// All blocks, sample by sample. The division depends only on shapes, so that sums are the same for any thread count.
inline std::vector<AttentionBlock> attention_blocks(const AttentionProblem& problem) {
  const int64_t together =
      std::max<int64_t>(1, kBlockLogits / std::max<int64_t>(1, checked_product({problem.keys, problem.queries})));
  const int64_t most = std::max(kLeastQueries, kBlockLogits / problem.keys);
  const int64_t parts = (problem.queries + most - 1) / most;
  std::vector<AttentionBlock> blocks;
  for (int64_t b = 0; b < problem.samples; b += together)
    for (int64_t part = 0; part < parts; ++part)
      blocks.push_back({b, std::min(problem.samples, b + together), problem.queries * part / parts,
                        problem.queries * (part + 1) / parts});
  return blocks;
}

// What the forward and the backward pass share: a block and its logits, chunk by chunk of keys.
class AttentionPass {
 protected:
  // Rows row .. row + count - 1 of the output get a slice's values from the block's queries query .. query + count - 1,
  // counted from its first.
  struct Overlap {
    int64_t row, count, query;
  };

  explicit AttentionPass(const AttentionProblem& problem)
      : p_(problem), chunks_((problem.keys + kChunk - 1) / kChunk) {}

  void load(const AttentionBlock& block) {
    block_ = block;
    const int64_t width = block.width(), size = width * p_.channels;
    logits_.resize(checked_product({block.samples(), p_.keys, width}));
    queries_.resize(block.samples() * size);
    hashes_.resize(p_.threshold ? block.samples() * width : 0);
    shifts_.resize(block.samples() * width);
    for_each(block.samples(), [&](int64_t i) {
      transpose(query(block.first + i), width, p_.channels, width, queries_.data() + i * size);
      if (!p_.threshold) return;
      const uint32_t row = static_cast<uint32_t>((block.first + i) * p_.queries + block.begin);
      for (int64_t n = 0; n < width; ++n)
        hashes_[i * width + n] = hash_finalize(row + static_cast<uint32_t>(n) + hash_finalize(p_.seed));
    });
  }

  // Keys of a chunk.
  int64_t count(int64_t chunk) const { return std::min(kChunk, p_.keys - chunk * kChunk); }

  const float* query(int64_t b) const { return p_.query + (b * p_.queries + block_.begin) * p_.channels; }

  // The logits [M][width] of a sample, from key m on.
  float* logits(int64_t b, int64_t m) { return logits_.data() + ((b - block_.first) * p_.keys + m) * block_.width(); }

  // [width], for a sample.
  float* shifts(int64_t b) { return shifts_.data() + (b - block_.first) * block_.width(); }

  float* compute_logits(int64_t b, int64_t chunk) {
    const int64_t width = block_.width(), i = b - block_.first, m = chunk * kChunk;
    float* tile = logits(b, m);
    multiply(count(chunk), width, p_.channels, p_.key + (b * p_.keys + m) * p_.channels, p_.channels,
             queries_.data() + i * width * p_.channels, width, tile, width, false);
    scale_rows(tile, count(chunk), width, p_.scale + b * p_.keys + m, p_.softmax_scale);
    if (p_.threshold)
      drop_logits(tile, count(chunk), width, {hashes_.data() + i * width, static_cast<uint32_t>(m), p_.threshold});
    return tile;
  }

  Overlap overlap(int64_t s) const {
    const int64_t row = std::max<int64_t>(0, block_.begin - p_.shifts[s]);
    return {row, std::min(p_.rows(), block_.end - p_.shifts[s]) - row, row + p_.shifts[s] - block_.begin};
  }

  // What to subtract from a query's logits before exp: its lse, or +inf if it has no key (all dropped).
  static float softmax_shift(float lse) {
    return lse == -std::numeric_limits<float>::infinity() ? std::numeric_limits<float>::infinity() : lse;
  }

  // Calls function(first, last, part) for 0 <= part < parts and all samples of the block: for the samples together if
  // they share the values, so that these are read once, else one at a time.
  template <typename Function>
  void for_samples(int64_t parts, const Function& function) const {
    for_each((p_.shared ? 1 : block_.samples()) * parts, [&](int64_t i) {
      const int64_t first = p_.shared ? block_.first : block_.first + i / parts;
      function(first, p_.shared ? block_.last : first + 1, i % parts);
    });
  }

  const AttentionProblem& p_;
  const int64_t chunks_;
  AttentionBlock block_{};

 private:
  std::vector<float> logits_, queries_, shifts_;  // queries [D][width] of each sample
  std::vector<uint32_t> hashes_;
};

}  // namespace timecycle
