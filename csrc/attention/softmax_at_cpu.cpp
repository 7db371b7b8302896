// softmax_at: a few dot products per query. Threads divide the queries; for d_key they divide samples and blocks of
// keys, and each thread scans all edges of a sample for those of its keys, which is cheap since edges are few.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "attention/softmax_at.h"
#include "simd/rows.h"

namespace timecycle {
namespace {

constexpr int64_t kKeys = 64;  // whose gradient a thread takes at once

bool exists(const SoftmaxAtProblem& problem, int64_t query, int64_t e) {
  return problem.indices[query * problem.edges + e] >= 0 &&
         problem.lse[query] != -std::numeric_limits<float>::infinity();
}

}  // namespace

template <typename Feature>
void softmax_at_cpu(const SoftmaxAtProblem& problem, const Feature* query, const Feature* key, float* out) {
  at::parallel_for(0, problem.samples * problem.queries, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> query_copy, key_copy;
    for (int64_t i = begin; i < end; ++i) {
      const float* q = as_floats(query + i * problem.channels, problem.channels, query_copy);
      for (int64_t e = 0; e < problem.edges; ++e) {
        const int64_t row = i / problem.queries * problem.keys + problem.indices[i * problem.edges + e];
        out[i * problem.edges + e] = 0.0f;
        if (!exists(problem, i, e)) continue;
        const float product =
            dot(q, as_floats(key + row * problem.channels, problem.channels, key_copy), problem.channels);
        out[i * problem.edges + e] = std::exp(product * problem.scale[row] * problem.softmax_scale - problem.lse[i]);
      }
    }
  });
}

template <typename Feature>
void softmax_at_backward_cpu(const SoftmaxAtProblem& problem, const float* gradient, const float* out,
                             const Feature* query, const Feature* key, Feature* d_query, Feature* d_key, float* d_scale,
                             float* d_lse) {
  const int64_t channels = problem.channels;
  at::parallel_for(0, problem.samples * problem.queries, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> sum(channels);
    for (int64_t i = begin; i < end; ++i) {
      std::fill(sum.begin(), sum.end(), 0.0f);
      d_lse[i] = 0.0f;
      for (int64_t e = i * problem.edges; e < (i + 1) * problem.edges; ++e) {
        if (!exists(problem, i, e - i * problem.edges)) continue;
        const int64_t row = i / problem.queries * problem.keys + problem.indices[e];
        const float d_logit = out[e] * gradient[e];
        d_lse[i] -= d_logit;
        add_scaled(d_logit * problem.softmax_scale * problem.scale[row], key + row * channels, channels, sum.data());
      }
      convert(sum.data(), channels, d_query + i * channels);
    }
  });
  const int64_t blocks = (problem.keys + kKeys - 1) / kKeys;
  at::parallel_for(0, problem.samples * blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> sums(kKeys * channels), copy;
    for (int64_t block = begin; block < end; ++block) {
      const int64_t b = block / blocks, first = block % blocks * kKeys, count = std::min(kKeys, problem.keys - first);
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (int64_t e = b * problem.queries * problem.edges; e < (b + 1) * problem.queries * problem.edges; ++e) {
        const int64_t m = problem.indices[e] - first, i = e / problem.edges;
        if (m >= 0 && m < count && exists(problem, i, e - i * problem.edges))
          add_scaled(out[e] * gradient[e] * problem.softmax_scale, query + i * channels, channels, &sums[m * channels]);
      }
      for (int64_t m = 0; m < count; ++m) {
        const int64_t row = b * problem.keys + first + m;
        float* sum = &sums[m * channels];
        d_scale[row] = dot(sum, as_floats(key + row * channels, channels, copy), channels);
        for (int64_t d = 0; d < channels; ++d) sum[d] *= problem.scale[row];
        convert(sum, channels, d_key + row * channels);
      }
    }
  });
}

#define INSTANTIATE(Feature)                                                                                 \
  template void softmax_at_cpu(const SoftmaxAtProblem&, const Feature*, const Feature*, float*);             \
  template void softmax_at_backward_cpu(const SoftmaxAtProblem&, const float*, const float*, const Feature*, \
                                        const Feature*, Feature*, Feature*, float*, float*);
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)
#undef INSTANTIATE

}  // namespace timecycle
