// GPU instructions beyond C++, one function each, in two versions: PTX for nvcc (instructions.cuh), and that of
// tests/emulator for a CPU, so that the kernels can be tested without a GPU.
#pragma once

namespace timecycle::chip {

// Events that tests/emulator counts per warp, at no cost on a GPU: see note().
enum class Event { flush, insertion, write, count };

}  // namespace timecycle::chip

#ifdef TIMECYCLE_EMULATOR
#include "emulator.h"
#else
#include "instructions.cuh"
#endif
