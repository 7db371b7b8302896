#include "simd/rows.h"

#include <algorithm>
#include <cstring>

#include "simd/variants.h"

namespace timecycle {
namespace {

// The conversions work on the bits: a library call would keep the loop around it from being vectorized.
TIMECYCLE_INLINE float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

TIMECYCLE_INLINE uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

TIMECYCLE_INLINE float widened(float value) { return value; }

TIMECYCLE_INLINE float widened(c10::BFloat16 value) { return from_bits(static_cast<uint32_t>(value.x) << 16); }

TIMECYCLE_INLINE float widened(c10::Half value) { return c10::detail::fp16_ieee_to_fp32_value(value.x); }

// Rounds to nearest even. Adding 0x7fff to a NaN could make an infinity or a number of it.
TIMECYCLE_INLINE uint16_t bfloat16_bits(float value) {
  const uint32_t bits = to_bits(value);
  return static_cast<uint16_t>(value == value ? (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16 : 0x7fc0u);
}

TIMECYCLE_INLINE uint16_t half_bits(float value) { return c10::detail::fp16_ieee_from_fp32_value(value); }

template <typename Feature>
TIMECYCLE_INLINE void add_scaled_any(float factor, const Feature* row, int64_t n, float* sum) {
  for (int64_t i = 0; i < n; ++i) sum[i] += factor * widened(row[i]);
}

template <typename Feature>
TIMECYCLE_INLINE void widen_any(const Feature* row, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = widened(row[i]);
}

template <typename Feature>
TIMECYCLE_INLINE void add_to_split_any(const float* row, int64_t n, Feature* upper, uint16_t* lower) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t sum = to_bits(row[i] + from_bits(static_cast<uint32_t>(upper[i].x) << 16 | lower[i]));
    upper[i].x = static_cast<uint16_t>(sum >> 16);
    lower[i] = static_cast<uint16_t>(sum);
  }
}

template <typename Element>
TIMECYCLE_INLINE void transpose_any(const Element* tile, int64_t rows, int64_t columns, int64_t row_stride,
                                    int64_t stride, Element* out) {
  for (int64_t column = 0; column < columns; ++column)
    for (int64_t row = 0; row < rows; ++row) out[column * stride + row] = tile[row * row_stride + column];
}

}  // namespace

TIMECYCLE_VARIANTS
void add_scaled(float factor, const float* row, int64_t n, float* sum) { add_scaled_any(factor, row, n, sum); }

TIMECYCLE_VARIANTS
void add_scaled(float factor, const c10::BFloat16* row, int64_t n, float* sum) { add_scaled_any(factor, row, n, sum); }

TIMECYCLE_VARIANTS
void add_scaled(float factor, const c10::Half* row, int64_t n, float* sum) { add_scaled_any(factor, row, n, sum); }

void convert(const float* row, int64_t n, float* out) { std::copy_n(row, n, out); }

void convert(const c10::BFloat16* row, int64_t n, c10::BFloat16* out) { std::copy_n(row, n, out); }

TIMECYCLE_VARIANTS
void convert(const c10::BFloat16* row, int64_t n, float* out) { widen_any(row, n, out); }

TIMECYCLE_VARIANTS
void convert(const c10::Half* row, int64_t n, float* out) { widen_any(row, n, out); }

TIMECYCLE_VARIANTS
void convert(const float* row, int64_t n, c10::BFloat16* out) {
  for (int64_t i = 0; i < n; ++i) out[i].x = bfloat16_bits(row[i]);
}

TIMECYCLE_VARIANTS
void convert(const float* row, int64_t n, c10::Half* out) {
  for (int64_t i = 0; i < n; ++i) out[i].x = half_bits(row[i]);
}

TIMECYCLE_VARIANTS
void add_to_split(const float* row, int64_t n, c10::BFloat16* upper, uint16_t* lower) {
  add_to_split_any(row, n, upper, lower);
}

TIMECYCLE_VARIANTS
void add_to_split(const float* row, int64_t n, c10::Half* upper, uint16_t* lower) {
  add_to_split_any(row, n, upper, lower);
}

TIMECYCLE_VARIANTS
void round_split(int64_t n, c10::BFloat16* upper, const uint16_t* lower) {
  for (int64_t i = 0; i < n; ++i)
    upper[i].x = bfloat16_bits(from_bits(static_cast<uint32_t>(upper[i].x) << 16 | lower[i]));
}

TIMECYCLE_VARIANTS
void round_split(int64_t n, c10::Half* upper, const uint16_t* lower) {
  for (int64_t i = 0; i < n; ++i) upper[i].x = half_bits(from_bits(static_cast<uint32_t>(upper[i].x) << 16 | lower[i]));
}

TIMECYCLE_VARIANTS
void interleave_rows(const c10::BFloat16* first, const c10::BFloat16* second, int64_t n, c10::BFloat16* out) {
  for (int64_t i = 0; i < n; ++i) {
    out[2 * i].x = first[i].x;
    out[2 * i + 1].x = second[i].x;
  }
}

namespace {

TIMECYCLE_VARIANTS
void transpose_plain(const float* tile, int64_t rows, int64_t columns, int64_t row_stride, int64_t stride, float* out) {
  transpose_any(tile, rows, columns, row_stride, stride, out);
}

}  // namespace

void transpose(const float* tile, int64_t rows, int64_t columns, int64_t stride, float* out) {
  const auto transpose_block = loops().transpose_block;
  int64_t done = 0;
  for (; done + 16 <= rows; done += 16) {
    const float* strip = tile + done * columns;
    int64_t column = 0;
    for (; column + 16 <= columns; column += 16)
      transpose_block(strip + column, columns, stride, out + column * stride + done);
    transpose_plain(strip + column, 16, columns - column, columns, stride, out + column * stride + done);
  }
  transpose_plain(tile + done * columns, rows - done, columns, columns, stride, out + done);
}

TIMECYCLE_VARIANTS
void transpose(const c10::BFloat16* tile, int64_t rows, int64_t columns, int64_t stride, c10::BFloat16* out) {
  transpose_any(tile, rows, columns, columns, stride, out);
}

}  // namespace timecycle
