// The loops of loops.h in plain C++, and the choice between them and AVX-512's.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "simd/variants.h"

#define TIMECYCLE_LOOP TIMECYCLE_VARIANTS
#include "simd/loops_template.h"

namespace timecycle {

#if TIMECYCLE_AVX512
extern const Loops* const kAvx512Loops;
#endif

namespace {

// A bit for each byte of a row, which are 0 or 1.
TIMECYCLE_INLINE uint64_t to_bits(const uint8_t* marked) {
  uint64_t eight[kLanes / 8], any = 0, bits = 0;
  std::memcpy(eight, marked, sizeof(eight));
  for (int64_t i = 0; i < kLanes / 8; ++i) any |= eight[i];
  if (any == 0) return 0;
  // The product has byte j's bit at 56 + j.
  for (int64_t i = 0; i < kLanes / 8; ++i) bits |= (eight[i] * 0x0102040810204080u >> 56) << (8 * i);
  return bits;
}

struct Plain {
  static constexpr int64_t kStep = kBlock;

  // kLanes floats, in memory.
  using Row = const float*;
  static TIMECYCLE_INLINE Row load(const float* values) { return values; }
  static TIMECYCLE_INLINE const float* store(Row values, float*) { return values; }

  static TIMECYCLE_INLINE uint64_t at_least(Row values, Row least) {
    alignas(64) uint8_t marked[kLanes];
    for (int64_t q = 0; q < kLanes; ++q) marked[q] = values[q] >= least[q];
    return to_bits(marked);
  }

  static TIMECYCLE_INLINE uint64_t above(Row values, Row bound) {
    alignas(64) uint8_t marked[kLanes];
    for (int64_t q = 0; q < kLanes; ++q) marked[q] = values[q] > bound[q];
    return to_bits(marked);
  }

  static TIMECYCLE_INLINE uint64_t positive(const float* values) {
    alignas(64) uint8_t marked[kLanes];
    for (int64_t q = 0; q < kLanes; ++q) marked[q] = values[q] > 0.0f;
    return to_bits(marked);
  }

  static TIMECYCLE_INLINE Row byte_products(const int32_t* integers, const ByteRow& key, Row total, Row offset,
                                            float* buffer) {
    const float scale = key.scale, low = key.low, sum = key.sum;
    for (int64_t q = 0; q < kLanes; ++q)
      buffer[q] = scale * static_cast<float>(integers[q]) + (low * total[q] + sum * offset[q]);
    return buffer;
  }

  // Inserts one value. Each new element depends on two old ones, itself and the one before: a step is one vector.
  static TIMECYCLE_INLINE void insert(const SortedLists& lists, int64_t q, float value, int32_t index) {
    constexpr int64_t kStep = SortedLists::kStep;
    float* values = lists.values + lists.begin(q);
    int32_t* indices = lists.indices ? lists.indices + lists.begin(q) : nullptr;
    for (int64_t first = lists.length - kStep; first >= 0; first -= kStep) {
      const float* here = values + first;
      // Indices first: their places depend on the old values.
      if (indices) {
        int32_t moved[kStep];
        for (int64_t j = 0; j < kStep; ++j)
          moved[j] = here[j] >= value ? indices[first + j] : here[j - 1] >= value ? index : indices[first + j - 1];
        std::memcpy(indices + first, moved, sizeof(moved));
      }
      const bool ends_here = here[-1] >= value;
      float moved[kStep];
      for (int64_t j = 0; j < kStep; ++j)
        moved[j] = here[j] >= value ? here[j] : here[j - 1] >= value ? value : here[j - 1];
      std::memcpy(values + first, moved, sizeof(moved));
      if (ends_here) break;
    }
    lists.kth[q] = values[lists.k - 1];
  }

  static TIMECYCLE_INLINE void transpose_block(const float* tile, int64_t columns, int64_t stride, float* out) {
    for (int64_t column = 0; column < 16; ++column)
      for (int64_t row = 0; row < 16; ++row) out[column * stride + row] = tile[row * columns + column];
  }

  // kBlock separate sums, so that loops vectorize and rounding errors stay small.
  struct Sums {
    float sums[kBlock] = {};

    TIMECYCLE_INLINE void add_products(const float* a, const float* b, int64_t n) {
      for (int64_t j = 0; j < n; ++j) sums[j] += a[j] * b[j];
    }
    TIMECYCLE_INLINE float total() {
      for (int64_t half = kBlock / 2; half > 0; half /= 2)
        for (int64_t j = 0; j < half; ++j) sums[j] += sums[j + half];
      return sums[0];
    }
  };

  // The smallest and the largest of some values, and the sum of their squares.
  struct Range {
    float least[kBlock], most[kBlock], norm[kBlock] = {};

    TIMECYCLE_INLINE explicit Range(float first) {
      std::fill_n(least, kBlock, first);
      std::fill_n(most, kBlock, first);
    }
    TIMECYCLE_INLINE void take(const float* values, int64_t count) {
      for (int64_t j = 0; j < count; ++j) {
        least[j] = values[j] < least[j] ? values[j] : least[j];
        most[j] = values[j] > most[j] ? values[j] : most[j];
        norm[j] += values[j] * values[j];
      }
    }
    TIMECYCLE_INLINE float low() const { return *std::min_element(least, least + kBlock); }
    TIMECYCLE_INLINE float high() const { return *std::max_element(most, most + kBlock); }
    TIMECYCLE_INLINE float squares() const { return sum_of(norm); }
  };

  struct Quantizer {
    float low, scale, inverse, residual[kBlock] = {};
    int32_t sum[kBlock] = {};

    TIMECYCLE_INLINE Quantizer(float low, float scale, float inverse) : low(low), scale(scale), inverse(inverse) {}
    TIMECYCLE_INLINE void take(const float* __restrict values, int64_t count, uint8_t* __restrict bytes) {
      for (int64_t j = 0; j < count; ++j) {
        const float steps = (values[j] - low) * inverse + 0.5f;
        const int32_t byte = static_cast<int32_t>(steps < 255.0f ? steps : 255.0f);  // 255 for NaN, too
        const float lost = values[j] - (low + scale * static_cast<float>(byte));
        bytes[j] = static_cast<uint8_t>(byte);
        residual[j] += lost * lost, sum[j] += byte;
      }
    }
    TIMECYCLE_INLINE int32_t total() const { return sum_of(sum); }
    TIMECYCLE_INLINE float lost_squares() const { return sum_of(residual); }
  };

 private:
  template <typename T>
  static TIMECYCLE_INLINE T sum_of(const T (&terms)[kBlock]) {
    T sum = terms[0];
    for (int64_t j = 1; j < kBlock; ++j) sum += terms[j];
    return sum;
  }
};

std::atomic<bool> avx512_off{false};

}  // namespace

void switch_avx512_off(bool off) { avx512_off = off; }

const Loops& loops() {
#if TIMECYCLE_AVX512
  static const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && !avx512_off.load(std::memory_order_relaxed)) return *kAvx512Loops;
#endif
  return kLoops<Plain>;
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

int64_t drop_candidates(Candidate* candidates, int64_t count, const float* kth) {
  const auto hopeless = [kth](const Candidate& c) { return c.upper_bound < kth[c.place % kLanes]; };
  return std::remove_if(candidates, candidates + count, hopeless) - candidates;
}

}  // namespace timecycle
