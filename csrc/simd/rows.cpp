#include "simd/rows.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

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

TIMECYCLE_INLINE void narrow(float value, float& out) { out = value; }

// Rounds to nearest even. Adding 0x7fff to a NaN could make an infinity or a number of it.
TIMECYCLE_INLINE void narrow(float value, c10::BFloat16& out) {
  const uint32_t bits = to_bits(value);
  out.x = static_cast<uint16_t>(value == value ? (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16 : 0x7fc0u);
}

TIMECYCLE_INLINE void narrow(float value, c10::Half& out) { out.x = c10::detail::fp16_ieee_from_fp32_value(value); }

TIMECYCLE_INLINE float joined(uint16_t upper, uint16_t lower) {
  return from_bits(static_cast<uint32_t>(upper) << 16 | lower);
}

template <typename Element>
TIMECYCLE_VARIANTS void transpose_plain(const Element* tile, int64_t rows, int64_t columns, int64_t row_stride,
                                        int64_t stride, Element* out) {
  for (int64_t column = 0; column < columns; ++column)
    for (int64_t row = 0; row < rows; ++row) out[column * stride + row] = tile[row * row_stride + column];
}

}  // namespace

template <typename Feature>
TIMECYCLE_VARIANTS void add_scaled(float factor, const Feature* row, int64_t n, float* sum) {
  for (int64_t i = 0; i < n; ++i) sum[i] += factor * widened(row[i]);
}

template <typename From, typename To>
TIMECYCLE_VARIANTS void convert(const From* row, int64_t n, To* out) {
  if constexpr (std::is_same_v<From, To>)
    std::copy_n(row, n, out);
  else
    for (int64_t i = 0; i < n; ++i) narrow(widened(row[i]), out[i]);
}

template <typename Feature>
TIMECYCLE_VARIANTS void add_to_split(const float* row, int64_t n, Feature* upper, uint16_t* lower) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t sum = to_bits(row[i] + joined(upper[i].x, lower[i]));
    upper[i].x = static_cast<uint16_t>(sum >> 16);
    lower[i] = static_cast<uint16_t>(sum);
  }
}

template <typename Feature>
TIMECYCLE_VARIANTS void round_split(int64_t n, Feature* upper, const uint16_t* lower) {
  for (int64_t i = 0; i < n; ++i) narrow(joined(upper[i].x, lower[i]), upper[i]);
}

#define INSTANTIATE_CONVERSIONS(Feature)                                  \
  template void add_scaled(float, const Feature*, int64_t, float*);       \
  template void convert(const Feature*, int64_t, float*);                 \
  template void convert(const float*, int64_t, Feature*);                 \
  template void add_to_split(const float*, int64_t, Feature*, uint16_t*); \
  template void round_split(int64_t, Feature*, const uint16_t*);
INSTANTIATE_CONVERSIONS(c10::BFloat16)
INSTANTIATE_CONVERSIONS(c10::Half)
#undef INSTANTIATE_CONVERSIONS
template void add_scaled(float, const float*, int64_t, float*);
template void convert(const float*, int64_t, float*);
template void convert(const c10::BFloat16*, int64_t, c10::BFloat16*);

TIMECYCLE_VARIANTS
void interleave_rows(const c10::BFloat16* first, const c10::BFloat16* second, int64_t n, c10::BFloat16* out) {
  for (int64_t i = 0; i < n; ++i) {
    out[2 * i].x = first[i].x;
    out[2 * i + 1].x = second[i].x;
  }
}

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

void transpose(const c10::BFloat16* tile, int64_t rows, int64_t columns, int64_t stride, c10::BFloat16* out) {
  transpose_plain(tile, rows, columns, columns, stride, out);
}

}  // namespace timecycle
