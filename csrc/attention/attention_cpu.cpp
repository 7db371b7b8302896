// attention's forward pass: a block's logits, chunk by chunk of keys, their lse, then their exponentials times values.
#include <cmath>
#include <limits>

#include "attention/attention_block.h"
#include "sizes.h"

namespace timecycle {
namespace {

constexpr int64_t kPartialSums = int64_t{1} << 21;  // floats
constexpr int64_t kMostGroups = 16;                 // of chunks, whatever the number of threads

class Forward : AttentionPass {
 public:
  Forward(const AttentionProblem& problem, float* out, float* lse) : AttentionPass(problem), out_(out), lse_(lse) {}

  void run(const AttentionBlock& block) {
    load(block);
    if (block.begin == 0) start_sums();
    statistics_.resize(block.samples() * chunks_ * 2 * block.width());
    for_each(block.samples() * chunks_, [&](int64_t i) {
      const int64_t b = block.first + i / chunks_, chunk = i % chunks_;
      float* found = statistics(b, chunk);
      column_softmax(compute_logits(b, chunk), count(chunk), block.width(), found, found + block.width());
    });
    for (int64_t b = block.first; b < block.last; ++b) combine(b);
    for_samples(groups_, [&](int64_t first, int64_t last, int64_t group) { add_group(first, last, group); });
    if (block.end == p_.queries) finish_sums();
  }

 private:
  // Chunks are summed in groups: each adds to sums of its own, so that groups can be on different threads.
  void start_sums() {
    const int64_t size = std::max<int64_t>(1, block_.samples() * p_.rows() * p_.columns);
    groups_ = std::clamp<int64_t>(kPartialSums / size, 1, std::min(kMostGroups, chunks_));
    sums_.assign(checked_product({groups_, size}), 0.0f);
  }

  float* sum(int64_t group, int64_t b) {
    return sums_.data() + (group * block_.samples() + b - block_.first) * p_.rows() * p_.columns;
  }

  // Of a sample and chunk: the largest logit of each query of the block, then the sums of exponentials.
  float* statistics(int64_t b, int64_t chunk) {
    return statistics_.data() + ((b - block_.first) * chunks_ + chunk) * 2 * block_.width();
  }

  // The lse of a sample's queries, from the statistics of all chunks.
  void combine(int64_t b) {
    const int64_t width = block_.width();
    for (int64_t n = 0; n < width; ++n) {
      float largest = -std::numeric_limits<float>::infinity(), sum = 0.0f;
      for (int64_t chunk = 0; chunk < chunks_; ++chunk) largest = std::max(largest, statistics(b, chunk)[n]);
      const float shift = std::isfinite(largest) ? largest : 0.0f;
      for (int64_t chunk = 0; chunk < chunks_; ++chunk)
        sum += statistics(b, chunk)[width + n] * std::exp(statistics(b, chunk)[n] - shift);
      const float lse = shift + std::log(sum);
      lse_[b * p_.queries + block_.begin + n] = lse;
      shifts(b)[n] = softmax_shift(lse);
    }
  }

  void add_group(int64_t first, int64_t last, int64_t group) {
    const int64_t width = block_.width();
    std::vector<float> transposed(width * kChunk);
    for (int64_t chunk = chunks_ * group / groups_; chunk < chunks_ * (group + 1) / groups_; ++chunk)
      for (int64_t b = first; b < last; ++b) {
        const int64_t keys = count(chunk), m = chunk * kChunk;
        float* tile = logits(b, m);
        exponentiate(tile, keys, width, shifts(b));
        transpose(tile, keys, width, kChunk, transposed.data());
        for (int64_t s = 0; s < p_.slices(); ++s) {
          const Overlap part = overlap(s);
          multiply(part.count, p_.columns, keys, &transposed[part.query * kChunk], kChunk,
                   p_.value + p_.value_row(b, s, m) * p_.columns, p_.columns, sum(group, b) + part.row * p_.columns,
                   p_.columns, true);
        }
      }
  }

  void finish_sums() {
    const int64_t size = p_.rows() * p_.columns;
    for_each(block_.samples(), [&](int64_t i) {
      const int64_t b = block_.first + i;
      for (int64_t group = 1; group < groups_; ++group) add_scaled(1.0f, sum(group, b), size, sum(0, b));
      std::copy_n(sum(0, b), size, out_ + b * size);
    });
  }

  float *out_, *lse_;
  int64_t groups_ = 1;
  std::vector<float> statistics_, sums_;
};

}  // namespace

void attention_cpu(const AttentionProblem& problem, float* out, float* lse) {
  Forward forward(problem, out, lse);
  for (const AttentionBlock& block : attention_blocks(problem)) forward.run(block);
}

}  // namespace timecycle
