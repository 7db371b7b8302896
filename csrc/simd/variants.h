// How loops are compiled for several instruction sets. The best one that the machine has is chosen at load time.
#pragma once

#define TIMECYCLE_INLINE inline __attribute__((always_inline))

// A function of plain loops, vectorized by the compiler for each of three x86-64 levels. What it calls must be
// TIMECYCLE_INLINE, else the callee is compiled for the lowest level alone.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(TIMECYCLE_ONE_VARIANT)
#define TIMECYCLE_VARIANTS __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define TIMECYCLE_VARIANTS
#endif

// Whether the compiler knows the intrinsics of AVX-512; whether the machine does is asked at run time.
#if defined(__x86_64__) && defined(__GNUC__)
#define TIMECYCLE_AVX512 1
#else
#define TIMECYCLE_AVX512 0
#endif
