// edge_affinity and its gradient (timecycle/ops/edge_affinity.py) on the CPU.
#pragma once

#include <cstdint>

namespace timecycle {

struct EdgeAffinity {
  const float *scale, *lse;                         // [B, M], [B, N]
  const int64_t* indices;                           // [B, N, E]; -1 is no edge
  int64_t samples, queries, keys, channels, edges;  // B, N, M, D, E
  float sharpness;                                  // 1 / temperature
};

// query [B, N, D], key [B, M, D]; writes out [B, N, E].
template <typename Feature>
void edge_affinity_cpu(const EdgeAffinity& call, const Feature* query, const Feature* key, float* out);

// gradient and out [B, N, E]; writes the gradients of query, key, scale and lse.
template <typename Feature>
void edge_affinity_backward_cpu(const EdgeAffinity& call, const float* gradient, const float* out, const Feature* query,
                                const Feature* key, Feature* d_query, Feature* d_key, float* d_scale, float* d_lse);

}  // namespace timecycle
