// Function multiversioning: loops are compiled for several instruction sets, and the loader picks the best one.
#pragma once

#define TIMECYCLE_INLINE inline __attribute__((always_inline))

// A function of plain loops, vectorized by the compiler for each of three x86-64 levels. Functions that it calls must
// be TIMECYCLE_INLINE, or they are compiled for the lowest level only.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(TIMECYCLE_ONE_VARIANT)
#define TIMECYCLE_VARIANTS __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define TIMECYCLE_VARIANTS
#endif

// Whether the compiler has AVX-512 intrinsics; the CPU is checked at run time.
#if defined(__x86_64__) && defined(__GNUC__)
#define TIMECYCLE_AVX512 1
#else
#define TIMECYCLE_AVX512 0
#endif
