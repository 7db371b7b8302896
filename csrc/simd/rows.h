// Arithmetic on rows of features and of gradients, in plain loops (variants.h). Sums are float whatever the rows are.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <vector>

#include "simd/loops.h"

namespace timecycle {

// <a, b> over n channels.
inline float dot(const float* a, const float* b, int64_t n) { return loops().dot(a, b, n); }

// sum += factor * row, n numbers each; rows of float, bfloat16 or half.
template <typename Feature>
void add_scaled(float factor, const Feature* row, int64_t n, float* sum);

// out = row: between float and each of the types, or bfloat16 copied. Narrowing rounds to nearest, ties to even.
template <typename From, typename To>
void convert(const From* row, int64_t n, To* out);

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
template <typename Feature>
void add_to_split(const float* row, int64_t n, Feature* upper, uint16_t* lower);

// Rounds such sums to the type of the output that holds their upper halves.
template <typename Feature>
void round_split(int64_t n, Feature* upper, const uint16_t* lower);

// Interleaves two rows: out [n][2].
void interleave_rows(const c10::BFloat16* first, const c10::BFloat16* second, int64_t n, c10::BFloat16* out);

// out [columns][stride] = the transpose of tile [rows][columns].
void transpose(const float* tile, int64_t rows, int64_t columns, int64_t stride, float* out);
void transpose(const c10::BFloat16* tile, int64_t rows, int64_t columns, int64_t stride, c10::BFloat16* out);

}  // namespace timecycle
