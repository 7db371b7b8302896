// Arithmetic on rows of features and of gradients: plain loops that the compiler vectorises, compiled for several
// instruction sets like those of column_epilogue.h. Sums are float whatever the rows are.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>

namespace timecycle {

// sum += factor * row, n numbers each.
void add_scaled(float factor, const float* row, int64_t n, float* sum);
void add_scaled(float factor, const c10::BFloat16* row, int64_t n, float* sum);
void add_scaled(float factor, const c10::Half* row, int64_t n, float* sum);

// out = row, in the type of out; narrowing rounds to nearest, ties to even.
void convert(const float* row, int64_t n, float* out);
void convert(const c10::BFloat16* row, int64_t n, c10::BFloat16* out);
void convert(const c10::BFloat16* row, int64_t n, float* out);
void convert(const c10::Half* row, int64_t n, float* out);
void convert(const float* row, int64_t n, c10::BFloat16* out);
void convert(const float* row, int64_t n, c10::Half* out);

// Floats in two halves, the upper 16 bits and the lower 16 bits apart, so that the upper ones can stand in an output of
// a 16-bit type until the sum is complete: half the memory of a float copy of the output, and the same sums.
void add_to_split(const float* row, int64_t n, c10::BFloat16* upper, uint16_t* lower);
void add_to_split(const float* row, int64_t n, c10::Half* upper, uint16_t* lower);

// Rounds such sums to the type of the output they stand in.
void round_split(int64_t n, c10::BFloat16* upper, const uint16_t* lower);
void round_split(int64_t n, c10::Half* upper, const uint16_t* lower);

// Two rows side by side, number by number: out [n][2].
void pair_rows(const c10::BFloat16* first, const c10::BFloat16* second, int64_t n, c10::BFloat16* out);

// out [columns][stride] = the transpose of tile [rows][columns].
void transpose(const float* tile, int64_t rows, int64_t columns, int64_t stride, float* out);
void transpose(const c10::BFloat16* tile, int64_t rows, int64_t columns, int64_t stride, c10::BFloat16* out);

}  // namespace timecycle
