// The busiest loops in AVX-512's own instructions: masks instead of bytes, and an insertion that is one `expand`.
// The plain loops of column_epilogue.cpp and byte_epilogue.cpp define what each does.
#pragma once

#include <cstdint>

#include "simd/byte_epilogue.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define TIMECYCLE_AVX512 1
#else
#define TIMECYCLE_AVX512 0
#endif

namespace timecycle::avx512 {

// Whether this machine has the instructions, and nobody has switched them off.
bool usable();

// For tests: with `off`, the plain loops serve.
void switch_off(bool off);

// out [16][stride] = the transpose of the first 16 x 16 of tile [16][columns].
void transpose_block(const float* tile, int64_t columns, int64_t stride, float* out);

float dot(const float* a, const float* b, int64_t n);
int64_t column_hits(const float* tile, int64_t rows, const float* worst, Hit* hits);
void insert_tile(const float* tile, const float* counts, int64_t every, int64_t rows, int32_t first_index,
                 const SortedLists& lists);
ByteRow round_to_bytes(const float* values, int64_t n, uint8_t* bytes);
int64_t byte_hits(const int32_t* tile, const float* counts, const ByteRow* keys, int64_t rows, const ByteLanes& lanes,
                  const float* threshold, Hit* hits);
int64_t keep_candidates(const Hit* hits, int64_t count, const float* counts, int64_t every, int64_t first_index,
                        const float* error, const SortedLists& lower, Candidate* out);

}  // namespace timecycle::avx512
