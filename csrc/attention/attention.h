// attend and its gradient (timecycle/ops/attend.py) on the CPU, in float.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace timecycle {

struct Attend {
  const float* query;                                 // [B, N, D]
  const float* key;                                   // [B, M, D]
  const float* value;                                 // [S, M, C] for all samples, or [B, S, M, C]
  const float* scale;                                 // [B, M]
  int64_t samples, queries, keys, channels, columns;  // B, N, M, D, C
  bool shared;                                        // the values are for all samples
  std::vector<int64_t> shifts;                        // [S]
  float sharpness;                                    // 1 / temperature
  uint32_t threshold, seed;                           // of edges that are dropped

  int64_t slices() const { return static_cast<int64_t>(shifts.size()); }
  int64_t rows() const { return queries - *std::max_element(shifts.begin(), shifts.end()); }
  // Row m of slice s of the values, or of their gradient, that sample b has.
  int64_t value_row(int64_t b, int64_t s, int64_t m) const { return ((shared ? 0 : b) * slices() + s) * keys + m; }
};

// Writes out [B, R, C] and lse [B, N].
void attend_cpu(const Attend& call, float* out, float* lse);

struct AttendGradient {
  const float *d_out, *d_lse, *lse;            // [B, R, C], [B, N], [B, N]
  float *d_query, *d_key, *d_value, *d_scale;  // written; shapes of the inputs
};

void attend_backward_cpu(const Attend& call, const AttendGradient& gradient);

}  // namespace timecycle
