// Arithmetic on rows of features and of gradients, in plain loops (variants.h). Sums are float whatever the rows are.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <vector>

#include "simd/loops.h"

namespace timecycle {

// sum += factor * row, n numbers each.
void add_scaled(float factor, const float* row, int64_t n, float* sum);
void add_scaled(float factor, const c10::BFloat16* row, int64_t n, float* sum);
void add_scaled(float factor, const c10::Half* row, int64_t n, float* sum);

// <a, b> over n channels.
inline float dot(const float* a, const float* b, int64_t n) { return loops().dot(a, b, n); }

// out = row, in the type of out; narrowing rounds to nearest, ties to even.
void convert(const float* row, int64_t n, float* out);
void convert(const c10::BFloat16* row, int64_t n, c10::BFloat16* out);
void convert(const c10::BFloat16* row, int64_t n, float* out);
void convert(const c10::Half* row, int64_t n, float* out);
void convert(const float* row, int64_t n, c10::BFloat16* out);
void convert(const float* row, int64_t n, c10::Half* out);

// n features as floats: themselves, or converted into `copy`.
inline const float* as_floats(const float* features, int64_t, std::vector<float>&) { return features; }

template <typename Feature>
const float* as_floats(const Feature* features, int64_t n, std::vector<float>& copy) {
  copy.resize(n);
  convert(features, n, copy.data());
  return copy.data();
}

// Adds to floats that are split into their upper and lower 16 bits. The upper halves are held in an output of a 16-bit
// type until the sum is complete: half the memory of a float copy of the output, and the same sums.
void add_to_split(const float* row, int64_t n, c10::BFloat16* upper, uint16_t* lower);
void add_to_split(const float* row, int64_t n, c10::Half* upper, uint16_t* lower);

// Rounds such sums to the type of the output that holds their upper halves.
void round_split(int64_t n, c10::BFloat16* upper, const uint16_t* lower);
void round_split(int64_t n, c10::Half* upper, const uint16_t* lower);

// Interleaves two rows: out [n][2].
void interleave_rows(const c10::BFloat16* first, const c10::BFloat16* second, int64_t n, c10::BFloat16* out);

// out [columns][stride] = the transpose of tile [rows][columns].
void transpose(const float* tile, int64_t rows, int64_t columns, int64_t stride, float* out);
void transpose(const c10::BFloat16* tile, int64_t rows, int64_t columns, int64_t stride, c10::BFloat16* out);

}  // namespace timecycle
