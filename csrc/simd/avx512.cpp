#include "simd/avx512.h"

#include <atomic>

#include "simd/hits.h"

#if TIMECYCLE_AVX512
#include <immintrin.h>
// GCC warns of its own _mm512_undefined_ps (its bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,bmi,bmi2,popcnt")))
#define AVX512_INLINE AVX512 inline __attribute__((always_inline))
#endif

namespace timecycle::avx512 {
namespace {

std::atomic<bool> switched_off{false};

}  // namespace

void switch_off(bool off) { switched_off = off; }

#if TIMECYCLE_AVX512

namespace {

constexpr int64_t kVector = 16, kVectors = kLanes / kVector;
static_assert(SortedLists::kStep == kVector);

// Appends the marked lanes of a row whose values are given as vectors.
AVX512_INLINE int64_t append(uint64_t marked, const __m512* values, int64_t row, Hit* hits, int64_t count) {
  alignas(64) float row_values[kLanes];
  for (int64_t v = 0; v < kVectors; ++v) _mm512_store_ps(row_values + v * kVector, values[v]);
  for (; marked != 0; marked &= marked - 1) {
    const int64_t q = __builtin_ctzll(marked);
    hits[count++] = {row_values[q], static_cast<int16_t>(row), static_cast<int16_t>(q)};
  }
  return count;
}

// As insert of hits.h. The step that holds the newcomer's place opens there and loses its last; each later step takes
// in what the one before it lost.
AVX512_INLINE void insert_one(const SortedLists& lists, int64_t q, float value, int32_t index) {
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
  lists.worst[q] = values[lists.k - 1];
}

}  // namespace

bool usable() {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return has && !switched_off.load(std::memory_order_relaxed);
}

AVX512 void transpose_block(const float* tile, int64_t columns, int64_t stride, float* out) {
  // Pairs of rows, pairs of pairs, then quarters of vectors twice.
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

AVX512 float dot(const float* a, const float* b, int64_t n) {
  __m512 sums[4];
  for (int64_t v = 0; v < 4; ++v) sums[v] = _mm512_setzero_ps();
  int64_t i = 0;
  for (; i + 4 * kVector <= n; i += 4 * kVector)
    for (int64_t v = 0; v < 4; ++v)
      sums[v] = _mm512_fmadd_ps(_mm512_loadu_ps(a + i + v * kVector), _mm512_loadu_ps(b + i + v * kVector), sums[v]);
  for (int64_t v = 0; i < n; i += kVector, ++v) {
    const __mmask16 mask = static_cast<__mmask16>(n - i >= kVector ? 0xffff : (1 << (n - i)) - 1);
    sums[v] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, a + i), _mm512_maskz_loadu_ps(mask, b + i), sums[v]);
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
}

AVX512 int64_t column_hits(const float* tile, int64_t rows, const float* worst, Hit* hits) {
  int64_t count = 0;
  __m512 least[kVectors], values[kVectors];
  for (int64_t v = 0; v < kVectors; ++v) least[v] = _mm512_loadu_ps(worst + v * kVector);
  for (int64_t row = 0; row < rows; ++row) {
    uint64_t marked = 0;
    for (int64_t v = 0; v < kVectors; ++v) {
      values[v] = _mm512_loadu_ps(tile + row * kLanes + v * kVector);
      marked |= static_cast<uint64_t>(_mm512_cmp_ps_mask(values[v], least[v], _CMP_GE_OQ)) << (v * kVector);
    }
    if (marked != 0) count = append(marked, values, row, hits, count);
  }
  return count;
}

AVX512 void insert_tile(const float* tile, const float* counts, int64_t every, int64_t rows, int32_t first_index,
                        const SortedLists& lists) {
  __m512 worst[kVectors];
  for (int64_t v = 0; v < kVectors; ++v) worst[v] = _mm512_loadu_ps(lists.worst + v * kVector);
  for (int64_t row = 0; row < rows; ++row) {
    uint64_t marked = 0;
    for (int64_t v = 0; v < kVectors; ++v) {
      const __m512 values = _mm512_loadu_ps(tile + row * kLanes + v * kVector);
      marked |= static_cast<uint64_t>(_mm512_cmp_ps_mask(values, worst[v], _CMP_GT_OQ)) << (v * kVector);
    }
    for (uint64_t left = marked; left != 0; left &= left - 1) {
      const int64_t q = __builtin_ctzll(left);
      const float value = tile[row * kLanes + q];
      int64_t times = times_counted(counts, every, row, q);
      for (; times > 0 && value > lists.worst[q]; --times)
        insert_one(lists, q, value, first_index + static_cast<int32_t>(row));
    }
    // What was inserted raised some thresholds; a few rows later that spares work.
    if (marked != 0 && row % 8 == 7)
      for (int64_t v = 0; v < kVectors; ++v) worst[v] = _mm512_loadu_ps(lists.worst + v * kVector);
  }
}

AVX512 ByteRow round_to_bytes(const float* values, int64_t n, uint8_t* bytes) {
  // Two of each, so that one step need not wait for the one before it.
  __m512 least[2], most[2], norm[2], residual[2];
  __m512i sum[2];
  for (int64_t h = 0; h < 2; ++h) {
    least[h] = most[h] = _mm512_set1_ps(values[0]);
    norm[h] = residual[h] = _mm512_setzero_ps();
    sum[h] = _mm512_setzero_si512();
  }
  const int64_t whole = n / (2 * kVector) * (2 * kVector);
  const auto rest = [n](int64_t i) {
    return static_cast<__mmask16>(n - i >= kVector ? 0xffff : n > i ? (1 << (n - i)) - 1 : 0);
  };
  for (int64_t i = 0; i < n; i += 2 * kVector)
    for (int64_t h = 0; h < 2; ++h) {
      const __mmask16 mask = i < whole ? 0xffff : rest(i + h * kVector);
      const __m512 x = _mm512_mask_loadu_ps(least[h], mask, values + i + h * kVector);
      least[h] = _mm512_min_ps(least[h], x);
      most[h] = _mm512_mask_max_ps(most[h], mask, most[h], x);
      norm[h] = _mm512_mask3_fmadd_ps(x, x, norm[h], mask);
    }
  const float low = _mm512_reduce_min_ps(_mm512_min_ps(least[0], least[1]));
  const float high = _mm512_reduce_max_ps(_mm512_max_ps(most[0], most[1]));
  const bool flat = !(high - low > 1e-30f);
  const float scale = flat ? 1.0f : (high - low) / 255.0f, inverse = flat ? 0.0f : 255.0f / (high - low);
  for (int64_t i = 0; i < n; i += 2 * kVector)
    for (int64_t h = 0; h < 2; ++h) {
      const __mmask16 mask = i < whole ? 0xffff : rest(i + h * kVector);
      const __m512 x = _mm512_maskz_loadu_ps(mask, values + i + h * kVector);
      const __m512 steps =
          _mm512_fmadd_ps(_mm512_sub_ps(x, _mm512_set1_ps(low)), _mm512_set1_ps(inverse), _mm512_set1_ps(0.5f));
      const __m512i byte = _mm512_maskz_min_epi32(mask, _mm512_cvttps_epi32(steps), _mm512_set1_epi32(255));
      const __m512 near = _mm512_fmadd_ps(_mm512_cvtepi32_ps(byte), _mm512_set1_ps(scale), _mm512_set1_ps(low));
      const __m512 lost = _mm512_maskz_sub_ps(mask, x, near);
      residual[h] = _mm512_fmadd_ps(lost, lost, residual[h]);
      sum[h] = _mm512_add_epi32(sum[h], byte);
      _mm_mask_storeu_epi8(bytes + i + h * kVector, mask, _mm512_cvtepi32_epi8(byte));
    }
  return make_byte_row(n, scale, low, _mm512_reduce_add_epi32(_mm512_add_epi32(sum[0], sum[1])),
                       _mm512_reduce_add_ps(_mm512_add_ps(norm[0], norm[1])),
                       _mm512_reduce_add_ps(_mm512_add_ps(residual[0], residual[1])));
}

AVX512 int64_t byte_hits(const int32_t* tile, const float* counts, const ByteRow* keys, int64_t rows,
                         const ByteLanes& lanes, const float* threshold, Hit* hits) {
  int64_t count = 0;
  __m512 least[kVectors], total[kVectors], offset[kVectors], values[kVectors];
  for (int64_t v = 0; v < kVectors; ++v) {
    least[v] = _mm512_loadu_ps(threshold + v * kVector);
    total[v] = _mm512_load_ps(lanes.total + v * kVector);
    offset[v] = _mm512_load_ps(lanes.offset + v * kVector);
  }
  for (int64_t row = 0; row < rows; ++row) {
    const __m512 scale = _mm512_set1_ps(keys[row].scale), low = _mm512_set1_ps(keys[row].low),
                 sum = _mm512_set1_ps(keys[row].sum);
    uint64_t marked = 0;
    for (int64_t v = 0; v < kVectors; ++v) {
      const __m512 integers = _mm512_cvtepi32_ps(_mm512_loadu_si512(tile + row * kLanes + v * kVector));
      const __m512 rest = _mm512_fmadd_ps(low, total[v], _mm512_mul_ps(sum, offset[v]));
      values[v] = _mm512_fmadd_ps(scale, integers, rest);
      __mmask16 mask = _mm512_cmp_ps_mask(values[v], least[v], _CMP_GE_OQ);
      if (counts)
        mask &=
            _mm512_cmp_ps_mask(_mm512_loadu_ps(counts + row * kLanes + v * kVector), _mm512_setzero_ps(), _CMP_GT_OQ);
      marked |= static_cast<uint64_t>(mask) << (v * kVector);
    }
    if (marked != 0) count = append(marked, values, row, hits, count);
  }
  return count;
}

AVX512 int64_t keep_candidates(const Hit* hits, int64_t count, const float* counts, int64_t every, int64_t first_index,
                               const float* error, const SortedLists& lower, Candidate* out) {
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t q = hits[i].lane, row = hits[i].row;
    const float most = hits[i].value + error[q], least = hits[i].value - error[q];
    if (!(most >= lower.worst[q])) continue;
    out[kept++] = {most, static_cast<uint32_t>((first_index + row) * kLanes + q)};
    int64_t times = times_counted(counts, every, row, q);
    for (; times > 0 && least > lower.worst[q]; --times) insert_one(lower, q, least, 0);
  }
  return kept;
}

#else

bool usable() { return false; }

#endif

}  // namespace timecycle::avx512
