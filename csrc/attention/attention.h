// attention and its gradient on the CPU, in float: definition in timecycle/ops/attention.py.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace timecycle {

struct AttentionProblem {
  const float* query;                                 // [B, N, D]
  const float* key;                                   // [B, M, D]
  const float* value;                                 // [S, M, C] if shared, else [B, S, M, C]
  const float* scale;                                 // [B, M]
  int64_t samples, queries, keys, channels, columns;  // B, N, M, D, C
  bool shared;                                        // all samples have the same values
  std::vector<int64_t> shifts;                        // [S]
  float softmax_scale;                                // 1 / temperature
  uint32_t threshold, seed;  // of dropout: an edge (query, key) is dropped if its hash is below

  int64_t slices() const { return static_cast<int64_t>(shifts.size()); }
  int64_t rows() const { return queries - *std::max_element(shifts.begin(), shifts.end()); }
  // Row m of slice s of the values of sample b, or of their gradient.
  int64_t value_row(int64_t b, int64_t s, int64_t m) const { return ((shared ? 0 : b) * slices() + s) * keys + m; }
};

// Writes out [B, R, C] and lse [B, N].
void attention_cpu(const AttentionProblem& problem, float* out, float* lse);

struct AttentionGradient {
  const float *d_out, *d_lse, *lse;            // [B, R, C], [B, N], [B, N]
  float *d_query, *d_key, *d_value, *d_scale;  // written; shapes of the inputs
};

void attention_backward_cpu(const AttentionProblem& problem, const AttentionGradient& gradient);

}  // namespace timecycle
