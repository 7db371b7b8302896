#include "simd/byte_epilogue.h"

#include <algorithm>
#include <cmath>

#include "simd/avx512.h"
#include "simd/hits.h"

namespace timecycle {
namespace plain {
namespace {

TIMECYCLE_VARIANTS
ByteRow round_to_bytes(const float* __restrict values, int64_t n, uint8_t* __restrict bytes) {
  constexpr int64_t kSums = 64;  // kept apart, so that the loops vectorise
  float least[kSums], most[kSums], norm[kSums] = {}, residual[kSums] = {};
  int32_t sum[kSums] = {};
  std::fill_n(least, kSums, values[0]);
  std::fill_n(most, kSums, values[0]);
  for (int64_t i = 0; i < n; i += kSums)
    for (int64_t j = 0; j < std::min(kSums, n - i); ++j) {
      least[j] = values[i + j] < least[j] ? values[i + j] : least[j];
      most[j] = values[i + j] > most[j] ? values[i + j] : most[j];
    }
  const float low = *std::min_element(least, least + kSums), high = *std::max_element(most, most + kSums);
  // Values that hardly differ are one value; their difference is part of the residual like any other.
  const bool flat = !(high - low > 1e-30f);
  const float scale = flat ? 1.0f : (high - low) / 255.0f, inverse = flat ? 0.0f : 255.0f / (high - low);
  for (int64_t i = 0; i < n; i += kSums)
    for (int64_t j = 0; j < std::min(kSums, n - i); ++j) {
      const float x = values[i + j];
      const int32_t nearest = static_cast<int32_t>((x - low) * inverse + 0.5f), byte = nearest > 255 ? 255 : nearest;
      const float lost = x - (low + scale * static_cast<float>(byte));
      bytes[i + j] = static_cast<uint8_t>(byte);
      norm[j] += x * x, residual[j] += lost * lost, sum[j] += byte;
    }
  for (int64_t j = 1; j < kSums; ++j) norm[0] += norm[j], residual[0] += residual[j], sum[0] += sum[j];
  return make_byte_row(n, scale, low, sum[0], norm[0], residual[0]);
}

TIMECYCLE_VARIANTS
int64_t byte_hits(const int32_t* tile, const float* counts, const ByteRow* keys, int64_t rows, const ByteLanes& lanes,
                  const float* threshold, Hit* hits) {
  int64_t count = 0;
  alignas(64) uint8_t marked[kLanes];
  alignas(64) float values[kLanes];
  for (int64_t row = 0; row < rows; ++row) {
    const int32_t* integers = tile + row * kLanes;
    const float scale = keys[row].scale, low = keys[row].low, sum = keys[row].sum;
    for (int64_t q = 0; q < kLanes; ++q) {
      values[q] = scale * static_cast<float>(integers[q]) + (low * lanes.total[q] + sum * lanes.offset[q]);
      marked[q] = values[q] >= threshold[q];
    }
    if (counts)
      for (int64_t q = 0; q < kLanes; ++q) marked[q] &= counts[row * kLanes + q] > 0.0f;
    count = append_marked(marked, values, row, hits, count);
  }
  return count;
}

TIMECYCLE_VARIANTS
int64_t keep_candidates(const Hit* hits, int64_t count, const float* counts, int64_t every, int64_t first_index,
                        const float* error, const SortedLists& lower, Candidate* out) {
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t q = hits[i].lane, row = hits[i].row;
    const float most = hits[i].value + error[q], least = hits[i].value - error[q];
    if (!(most >= lower.worst[q])) continue;
    out[kept++] = {most, static_cast<uint32_t>((first_index + row) * kLanes + q)};
    int64_t times = times_counted(counts, every, row, q);
    for (; times > 0 && least > lower.worst[q]; --times) insert(lower, q, least, 0);
  }
  return kept;
}

}  // namespace
}  // namespace plain

ByteRow round_to_bytes(const float* values, int64_t n, uint8_t* bytes) {
#if TIMECYCLE_AVX512
  if (avx512::usable()) return avx512::round_to_bytes(values, n, bytes);
#endif
  return plain::round_to_bytes(values, n, bytes);
}

int64_t byte_hits(const int32_t* tile, const float* counts, const ByteRow* keys, int64_t rows, const ByteLanes& lanes,
                  const float* threshold, Hit* hits) {
#if TIMECYCLE_AVX512
  if (avx512::usable()) return avx512::byte_hits(tile, counts, keys, rows, lanes, threshold, hits);
#endif
  return plain::byte_hits(tile, counts, keys, rows, lanes, threshold, hits);
}

int64_t keep_candidates(const Hit* hits, int64_t count, const float* counts, int64_t every, int64_t first_index,
                        const float* error, const SortedLists& lower, Candidate* out) {
#if TIMECYCLE_AVX512
  if (avx512::usable()) return avx512::keep_candidates(hits, count, counts, every, first_index, error, lower, out);
#endif
  return plain::keep_candidates(hits, count, counts, every, first_index, error, lower, out);
}

TIMECYCLE_VARIANTS
void byte_errors(const ByteRow* keys, int64_t rows, const ByteLanes& lanes, float* error) {
  float norm = 0.0f, residual = 0.0f, parts = 0.0f;
  for (int64_t row = 0; row < rows; ++row) {
    norm = std::max(norm, keys[row].norm);
    residual = std::max(residual, keys[row].residual);
    parts = std::max(parts, keys[row].parts);
  }
  for (int64_t q = 0; q < kLanes; ++q)
    error[q] = lanes.residual[q] * norm + lanes.norm[q] * residual + lanes.parts[q] * parts;
}

int64_t drop_candidates(Candidate* candidates, int64_t count, const float* worst) {
  const auto hopeless = [worst](const Candidate& c) { return c.most < worst[c.place % kLanes]; };
  return std::remove_if(candidates, candidates + count, hopeless) - candidates;
}

}  // namespace timecycle
