// softmax_at and its gradient on the CPU: definition in timecycle/ops/softmax_at.py.
#pragma once

#include <cstdint>

namespace timecycle {

struct SoftmaxAtProblem {
  const float *scale, *lse;                         // [B, M], [B, N]
  const int64_t* indices;                           // [B, N, E]; -1 for none
  int64_t samples, queries, keys, channels, edges;  // B, N, M, D, E
  float softmax_scale;                              // 1 / temperature
};

// query [B, N, D], key [B, M, D]; writes out [B, N, E].
template <typename Feature>
void softmax_at_cpu(const SoftmaxAtProblem& problem, const Feature* query, const Feature* key, float* out);

// gradient and out [B, N, E]; writes the gradients of query, key, scale and lse.
template <typename Feature>
void softmax_at_backward_cpu(const SoftmaxAtProblem& problem, const float* gradient, const float* out,
                             const Feature* query, const Feature* key, Feature* d_query, Feature* d_key, float* d_scale,
                             float* d_lse);

}  // namespace timecycle
