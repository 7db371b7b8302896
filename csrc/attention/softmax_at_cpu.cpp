// A few dot products a query. Threads share the queries, and for the keys' gradient the samples and then the keys:
// edges are few, so each thread reads all of a sample's and takes those of its keys, in their order.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "attention/softmax_at.h"
#include "simd/column_epilogue.h"
#include "simd/row_arithmetic.h"

namespace timecycle {
namespace {

constexpr int64_t kKeys = 64;  // whose gradient a thread takes at once

template <typename Feature>
const float* widened(const Feature* row, int64_t n, std::vector<float>& copy) {
  copy.resize(n);
  convert(row, n, copy.data());
  return copy.data();
}

const float* widened(const float* row, int64_t, std::vector<float>&) { return row; }

bool exists(const EdgeAffinity& call, int64_t query, int64_t e) {
  return call.indices[query * call.edges + e] >= 0 && call.lse[query] != -std::numeric_limits<float>::infinity();
}

}  // namespace

template <typename Feature>
void edge_affinity_cpu(const EdgeAffinity& call, const Feature* query, const Feature* key, float* out) {
  at::parallel_for(0, call.samples * call.queries, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> query_copy, key_copy;
    for (int64_t i = begin; i < end; ++i) {
      const float* q = widened(query + i * call.channels, call.channels, query_copy);
      for (int64_t e = 0; e < call.edges; ++e) {
        const int64_t row = i / call.queries * call.keys + call.indices[i * call.edges + e];
        out[i * call.edges + e] = 0.0f;
        if (!exists(call, i, e)) continue;
        const float product = dot(q, widened(key + row * call.channels, call.channels, key_copy), call.channels);
        out[i * call.edges + e] = std::exp(product * call.scale[row] * call.sharpness - call.lse[i]);
      }
    }
  });
}

template <typename Feature>
void edge_affinity_backward_cpu(const EdgeAffinity& call, const float* gradient, const float* out, const Feature* query,
                                const Feature* key, Feature* d_query, Feature* d_key, float* d_scale, float* d_lse) {
  const int64_t channels = call.channels;
  at::parallel_for(0, call.samples * call.queries, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> sum(channels);
    for (int64_t i = begin; i < end; ++i) {
      std::fill(sum.begin(), sum.end(), 0.0f);
      d_lse[i] = 0.0f;
      for (int64_t e = i * call.edges; e < (i + 1) * call.edges; ++e) {
        if (!exists(call, i, e - i * call.edges)) continue;
        const int64_t row = i / call.queries * call.keys + call.indices[e];
        const float d_logit = out[e] * gradient[e];
        d_lse[i] -= d_logit;
        add_scaled(d_logit * call.sharpness * call.scale[row], key + row * channels, channels, sum.data());
      }
      convert(sum.data(), channels, d_query + i * channels);
    }
  });
  const int64_t blocks = (call.keys + kKeys - 1) / kKeys;
  at::parallel_for(0, call.samples * blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> sums(kKeys * channels), copy;
    for (int64_t block = begin; block < end; ++block) {
      const int64_t b = block / blocks, first = block % blocks * kKeys, count = std::min(kKeys, call.keys - first);
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (int64_t e = b * call.queries * call.edges; e < (b + 1) * call.queries * call.edges; ++e) {
        const int64_t m = call.indices[e] - first, i = e / call.edges;
        if (m >= 0 && m < count && exists(call, i, e - i * call.edges))
          add_scaled(out[e] * gradient[e] * call.sharpness, query + i * channels, channels, &sums[m * channels]);
      }
      for (int64_t m = 0; m < count; ++m) {
        const int64_t row = b * call.keys + first + m;
        float* sum = &sums[m * channels];
        d_scale[row] = dot(sum, widened(key + row * channels, channels, copy), channels);
        for (int64_t d = 0; d < channels; ++d) sum[d] *= call.scale[row];
        convert(sum, channels, d_key + row * channels);
      }
    }
  });
}

#define INSTANTIATE(Feature)                                                                                \
  template void edge_affinity_cpu(const EdgeAffinity&, const Feature*, const Feature*, float*);             \
  template void edge_affinity_backward_cpu(const EdgeAffinity&, const float*, const float*, const Feature*, \
                                           const Feature*, Feature*, Feature*, float*, float*);
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)
#undef INSTANTIATE

}  // namespace timecycle
