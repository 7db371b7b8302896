// The loops of loops.h in AVX-512 intrinsics. Called only if the CPU has them.
#include "simd/loops.h"
#include "simd/variants.h"

#if TIMECYCLE_AVX512

#include <immintrin.h>
// GCC warns about its own _mm512_undefined_ps (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
// The rest of this file, including loops_template.h, is compiled for AVX-512.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,bmi,bmi2,popcnt"))), \
                             apply_to = function)
#else
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,bmi,bmi2,popcnt")
#endif

// For loops over an array of vectors. Without it GCC 12 unrolls them too late to keep the array in registers alone, and
// writes it to memory in every step of the loop around them.
#define TIMECYCLE_UNROLL _Pragma("GCC unroll 4")

#define TIMECYCLE_LOOP
#include "simd/loops_template.h"

namespace timecycle {
namespace {

constexpr int64_t kVector = 16, kVectors = kLanes / kVector;
static_assert(SortedLists::kStep == kVector && kBlock == 4 * kVector);

// The first `count` lanes of a vector: all if there are that many or more, none if count is below 1.
TIMECYCLE_INLINE __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>(count >= kVector ? 0xffff : count > 0 ? (1 << count) - 1 : 0);
}

struct Avx512 {
  static constexpr int64_t kStep = 2 * kVector;

  // kLanes floats, in registers.
  struct Row {
    __m512 vector[kVectors];
  };

  static TIMECYCLE_INLINE Row load(const float* values) {
    Row row;
    TIMECYCLE_UNROLL
    for (int64_t v = 0; v < kVectors; ++v) row.vector[v] = _mm512_loadu_ps(values + v * kVector);
    return row;
  }

  static TIMECYCLE_INLINE const float* store(const Row& row, float* buffer) {
    for (int64_t v = 0; v < kVectors; ++v) _mm512_store_ps(buffer + v * kVector, row.vector[v]);
    return buffer;
  }

  template <int kComparison>
  static TIMECYCLE_INLINE uint64_t compare(const Row& values, const Row& bound) {
    uint64_t marked = 0;
    for (int64_t v = 0; v < kVectors; ++v)
      marked |= static_cast<uint64_t>(_mm512_cmp_ps_mask(values.vector[v], bound.vector[v], kComparison))
                << (v * kVector);
    return marked;
  }

  static TIMECYCLE_INLINE uint64_t at_least(const Row& values, const Row& least) {
    return compare<_CMP_GE_OQ>(values, least);
  }
  static TIMECYCLE_INLINE uint64_t above(const Row& values, const Row& bound) {
    return compare<_CMP_GT_OQ>(values, bound);
  }
  static TIMECYCLE_INLINE uint64_t positive(const float* values) {
    Row zero;
    for (__m512& vector : zero.vector) vector = _mm512_setzero_ps();
    return above(load(values), zero);
  }

  static TIMECYCLE_INLINE Row byte_products(const int32_t* integers, const ByteRow& key, const Row& total,
                                            const Row& offset, float*) {
    const __m512 scale = _mm512_set1_ps(key.scale), low = _mm512_set1_ps(key.low), sum = _mm512_set1_ps(key.sum);
    Row row;
    for (int64_t v = 0; v < kVectors; ++v) {
      const __m512 integer = _mm512_cvtepi32_ps(_mm512_loadu_si512(integers + v * kVector));
      const __m512 rest = _mm512_fmadd_ps(low, total.vector[v], _mm512_mul_ps(sum, offset.vector[v]));
      row.vector[v] = _mm512_fmadd_ps(scale, integer, rest);
    }
    return row;
  }

  // Inserts one value by `expand`. The step that has its place shifts from there on and loses its last element, which
  // becomes the first of the next step, and so on.
  static TIMECYCLE_INLINE void insert(const SortedLists& lists, int64_t q, float value, int32_t index) {
    float* values = lists.values + lists.begin(q);
    int64_t first = 0;
    __m512 here = _mm512_loadu_ps(values);
    __mmask16 keep = _mm512_cmp_ps_mask(here, _mm512_set1_ps(value), _CMP_GE_OQ);
    while (keep == 0xffff) {
      first += kVector;
      here = _mm512_loadu_ps(values + first);
      keep = _mm512_cmp_ps_mask(here, _mm512_set1_ps(value), _CMP_GE_OQ);
    }
    __mmask16 moved = static_cast<__mmask16>(~(1u << __builtin_popcount(keep)));
    for (;;) {
      const float last = values[first + kVector - 1];
      _mm512_storeu_ps(values + first, _mm512_mask_expand_ps(_mm512_set1_ps(value), moved, here));
      if (lists.indices) {
        int32_t* indices = lists.indices + lists.begin(q) + first;
        const int32_t last_index = indices[kVector - 1];
        const __m512i here_indices = _mm512_loadu_si512(indices);
        _mm512_storeu_si512(indices, _mm512_mask_expand_epi32(_mm512_set1_epi32(index), moved, here_indices));
        index = last_index;
      }
      first += kVector;
      if (first >= lists.length) break;
      value = last, moved = 0xfffe;
      here = _mm512_loadu_ps(values + first);
    }
    lists.kth[q] = values[lists.k - 1];
  }

  static TIMECYCLE_INLINE void transpose_block(const float* tile, int64_t columns, int64_t stride, float* out) {
    // Interleaves pairs of rows, then pairs of pairs, then permutes quarters of vectors twice.
    __m512 a[kVector], b[kVector];
    for (int64_t row = 0; row < kVector; ++row) a[row] = _mm512_loadu_ps(tile + row * columns);
    for (int64_t row = 0; row < kVector; row += 2) {
      b[row] = _mm512_unpacklo_ps(a[row], a[row + 1]);
      b[row + 1] = _mm512_unpackhi_ps(a[row], a[row + 1]);
    }
    for (int64_t row = 0; row < kVector; row += 4)
      for (int64_t half = 0; half < 2; ++half) {
        const __m512d low = _mm512_castps_pd(b[row + half]), high = _mm512_castps_pd(b[row + half + 2]);
        a[row + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
        a[row + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
      }
    // a[4 * i + j] holds columns j, j + 4, j + 8, j + 12 of rows 4 * i .. 4 * i + 3.
    for (int64_t j = 0; j < 4; ++j) {
      const __m512 even_low = _mm512_shuffle_f32x4(a[j], a[4 + j], 0x88),
                   odd_low = _mm512_shuffle_f32x4(a[j], a[4 + j], 0xdd);
      const __m512 even_high = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0x88);
      const __m512 odd_high = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0xdd);
      _mm512_storeu_ps(out + j * stride, _mm512_shuffle_f32x4(even_low, even_high, 0x88));
      _mm512_storeu_ps(out + (j + 8) * stride, _mm512_shuffle_f32x4(even_low, even_high, 0xdd));
      _mm512_storeu_ps(out + (j + 4) * stride, _mm512_shuffle_f32x4(odd_low, odd_high, 0x88));
      _mm512_storeu_ps(out + (j + 12) * stride, _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd));
    }
  }

  struct Sums {
    __m512 sums[4];

    TIMECYCLE_INLINE Sums() {
      TIMECYCLE_UNROLL
      for (__m512& sum : sums) sum = _mm512_setzero_ps();
    }
    TIMECYCLE_INLINE void add_products(const float* a, const float* b, int64_t n) {
      TIMECYCLE_UNROLL
      for (int64_t v = 0; v < 4; ++v) {
        const __mmask16 mask = first_lanes(n - v * kVector);
        sums[v] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, a + v * kVector),
                                  _mm512_maskz_loadu_ps(mask, b + v * kVector), sums[v]);
      }
    }
    TIMECYCLE_INLINE float total() const {
      return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
    }
  };

  // The smallest and the largest of some values, and the sum of their squares: two accumulators of each, so that
  // consecutive steps do not depend on each other.
  struct Range {
    __m512 least[2], most[2], norm[2];

    TIMECYCLE_INLINE explicit Range(float first) {
      for (int64_t h = 0; h < 2; ++h) {
        least[h] = most[h] = _mm512_set1_ps(first);
        norm[h] = _mm512_setzero_ps();
      }
    }
    TIMECYCLE_INLINE void take(const float* values, int64_t count) {
      TIMECYCLE_UNROLL
      for (int64_t h = 0; h < 2; ++h) {
        const __mmask16 mask = first_lanes(count - h * kVector);
        const __m512 x = _mm512_mask_loadu_ps(least[h], mask, values + h * kVector);
        // NaN is passed over, as by the plain loop: min and max return their second operand then.
        least[h] = _mm512_min_ps(x, least[h]);
        most[h] = _mm512_mask_max_ps(most[h], mask, x, most[h]);
        norm[h] = _mm512_mask3_fmadd_ps(x, x, norm[h], mask);
      }
    }
    TIMECYCLE_INLINE float low() const { return _mm512_reduce_min_ps(_mm512_min_ps(least[0], least[1])); }
    TIMECYCLE_INLINE float high() const { return _mm512_reduce_max_ps(_mm512_max_ps(most[0], most[1])); }
    TIMECYCLE_INLINE float squares() const { return _mm512_reduce_add_ps(_mm512_add_ps(norm[0], norm[1])); }
  };

  struct Quantizer {
    __m512 low, scale, inverse, residual[2];
    __m512i sum[2];

    TIMECYCLE_INLINE Quantizer(float low, float scale, float inverse)
        : low(_mm512_set1_ps(low)), scale(_mm512_set1_ps(scale)), inverse(_mm512_set1_ps(inverse)) {
      for (int64_t h = 0; h < 2; ++h) {
        residual[h] = _mm512_setzero_ps();
        sum[h] = _mm512_setzero_si512();
      }
    }
    TIMECYCLE_INLINE void take(const float* values, int64_t count, uint8_t* bytes) {
      TIMECYCLE_UNROLL
      for (int64_t h = 0; h < 2; ++h) {
        const __mmask16 mask = first_lanes(count - h * kVector);
        const __m512 x = _mm512_maskz_loadu_ps(mask, values + h * kVector);
        const __m512 steps = _mm512_fmadd_ps(_mm512_sub_ps(x, low), inverse, _mm512_set1_ps(0.5f));
        // 255 for NaN, too, which has no integer.
        const __m512i byte = _mm512_maskz_cvttps_epi32(mask, _mm512_min_ps(steps, _mm512_set1_ps(255.0f)));
        const __m512 near = _mm512_fmadd_ps(_mm512_cvtepi32_ps(byte), scale, low);
        const __m512 lost = _mm512_maskz_sub_ps(mask, x, near);
        residual[h] = _mm512_fmadd_ps(lost, lost, residual[h]);
        sum[h] = _mm512_add_epi32(sum[h], byte);
        _mm_mask_storeu_epi8(bytes + h * kVector, mask, _mm512_cvtepi32_epi8(byte));
      }
    }
    TIMECYCLE_INLINE int32_t total() const { return _mm512_reduce_add_epi32(_mm512_add_epi32(sum[0], sum[1])); }
    TIMECYCLE_INLINE float lost_squares() const {
      return _mm512_reduce_add_ps(_mm512_add_ps(residual[0], residual[1]));
    }
  };
};

}  // namespace

extern const Loops* const kAvx512Loops;
const Loops* const kAvx512Loops = &kLoops<Avx512>;

}  // namespace timecycle

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
