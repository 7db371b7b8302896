// attention's backward pass. A block's affinities and their gradients are held keys by queries, the layout that four of
// the five products need. Threads divide the keys, and for d_query the queries, so that no two add to the same sum.
#include <cmath>
#include <limits>

#include "attention/attention_block.h"
#include "simd/variants.h"
#include "sizes.h"

namespace timecycle {
namespace {

constexpr int64_t kQueries = 64;  // whose gradient a thread takes at once

class Backward : AttentionPass {
 public:
  Backward(const AttentionProblem& problem, const AttentionGradient& gradient)
      : AttentionPass(problem), in_(gradient) {}

  void run(const AttentionBlock& block) {
    load(block);
    load_gradients();
    const auto for_chunks = [&](const auto& function) {
      for_samples(chunks_, [&](int64_t first, int64_t last, int64_t chunk) {
        for (int64_t b = first; b < last; ++b) function(b, chunk);
      });
    };
    for_chunks([&](int64_t b, int64_t chunk) { compute_affinities(b, chunk); });
    for (int64_t b = block.first; b < block.last; ++b) combine(b);
    for_chunks([&](int64_t b, int64_t chunk) { key_gradients(b, chunk); });
    const int64_t blocks = (block.width() + kQueries - 1) / kQueries;
    for_each(block.samples() * blocks, [&](int64_t i) { query_gradients(block.first + i / blocks, i % blocks); });
  }

  // Splits the gradient of key * scale, which d_key holds until now.
  void finish() {
    for_each(p_.samples * p_.keys, [&](int64_t row) {
      float* d_key = in_.d_key + row * p_.channels;
      in_.d_scale[row] = dot(p_.key + row * p_.channels, d_key, p_.channels);
      scale_rows(d_key, 1, p_.channels, p_.scale + row);
    });
  }

 private:
  void load_gradients() {
    const int64_t width = block_.width(), size = p_.rows() * p_.columns;
    gradients_.resize(checked_product({block_.samples(), p_.keys, width}));
    means_.resize(block_.samples() * chunks_ * width);
    add_.resize(block_.samples() * width);
    transposed_.resize(checked_product({block_.samples(), size}));
    for_each(block_.samples(), [&](int64_t i) {
      const int64_t b = block_.first + i;
      transpose(in_.d_out + b * size, p_.rows(), p_.columns, p_.rows(), transposed_.data() + i * size);
      for (int64_t n = 0; n < width; ++n) shifts(b)[n] = softmax_shift(in_.lse[b * p_.queries + block_.begin + n]);
    });
  }

  float* gradient(int64_t b, int64_t m) {
    return gradients_.data() + ((b - block_.first) * p_.keys + m) * block_.width();
  }

  float* mean(int64_t b, int64_t chunk) {
    return means_.data() + ((b - block_.first) * chunks_ + chunk) * block_.width();
  }

  // The affinities of a chunk, their gradients, and the sums over its keys of the products of both.
  void compute_affinities(int64_t b, int64_t chunk) {
    const int64_t width = block_.width(), m = chunk * kChunk, keys = count(chunk);
    float *affinity = compute_logits(b, chunk), *d_affinity = gradient(b, m);
    exponentiate(affinity, keys, width, shifts(b));
    std::fill_n(d_affinity, keys * width, 0.0f);
    const float* d_out = transposed_.data() + (b - block_.first) * p_.rows() * p_.columns;
    for (int64_t s = 0; s < p_.slices(); ++s) {
      const Overlap part = overlap(s);
      multiply(keys, part.count, p_.columns, p_.value + p_.value_row(b, s, m) * p_.columns, p_.columns,
               d_out + part.row, p_.rows(), d_affinity + part.query, width, true);
    }
    column_dots(affinity, d_affinity, keys, width, mean(b, chunk));
  }

  void combine(int64_t b) {
    const int64_t width = block_.width();
    for (int64_t n = 0; n < width; ++n) {
      const float d_lse = in_.d_lse[b * p_.queries + block_.begin + n];
      float sum = 0.0f;
      for (int64_t chunk = 0; chunk < chunks_; ++chunk) sum += mean(b, chunk)[n];
      // The lse of a query without a key is -inf. Its gradient may be anything, and does not count.
      add_[(b - block_.first) * width + n] = std::isinf(shifts(b)[n]) ? 0.0f : d_lse - sum;
    }
  }

  // The gradients of a chunk's values, and of key * scale. Overwrites the affinities' gradients by those of query *
  // key, transposed: queries by keys.
  void key_gradients(int64_t b, int64_t chunk) {
    const int64_t width = block_.width(), m = chunk * kChunk, keys = count(chunk), columns = p_.columns;
    const int64_t row = b * p_.keys + m, channels = p_.channels;
    float* tile = logits(b, m);
    for (int64_t s = 0; s < p_.slices(); ++s) {
      const Overlap part = overlap(s);
      float* d_value = in_.d_value + p_.value_row(b, s, m) * columns;
      const bool first = block_.begin == 0 && (b == 0 || !p_.shared);
      if (first && part.count <= 0) std::fill_n(d_value, keys * columns, 0.0f);
      multiply(keys, columns, part.count, tile + part.query, width, in_.d_out + (b * p_.rows() + part.row) * columns,
               columns, d_value, columns, !first);
    }
    softmax_gradient(tile, gradient(b, m), keys, width, add_.data() + (b - block_.first) * width, p_.softmax_scale);
    multiply(keys, channels, width, tile, width, query(b), channels, in_.d_key + row * channels, channels,
             block_.begin > 0);
    scale_rows(tile, keys, width, p_.scale + row);
    transpose(tile, keys, width, keys, gradient(b, m));
  }

  void query_gradients(int64_t b, int64_t block) {
    const int64_t first = block * kQueries, rows = std::min(kQueries, block_.width() - first), channels = p_.channels;
    float* d_query = in_.d_query + (b * p_.queries + block_.begin + first) * channels;
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      const int64_t m = chunk * kChunk, keys = count(chunk);
      multiply(rows, channels, keys, gradient(b, m) + first * keys, keys, p_.key + (b * p_.keys + m) * channels,
               channels, d_query, channels, chunk > 0);
    }
  }

  const AttentionGradient& in_;
  // Of each sample: gradients of affinities [M][width]; the sums of affinity * gradient [chunks][width]; the term added
  // to the gradients [width]; the gradient of the output [C][R].
  std::vector<float> gradients_, means_, add_, transposed_;
};

}  // namespace

void attention_backward_cpu(const AttentionProblem& problem, const AttentionGradient& gradient) {
  Backward backward(problem, gradient);
  for (const AttentionBlock& block : attention_blocks(problem)) backward.run(block);
  backward.finish();
}

}  // namespace timecycle
