// What a chip does beyond C++: the few instructions that the kernels are made of, one function each.
//
// There are two versions. nvcc gets the real ones. tests/emulator has the same functions for a CPU, so that the
// kernels' own code runs, and is tested, where there is no GPU.
#pragma once

#ifdef TIMECYCLE_EMULATOR
#include "emulator.h"
#else
#include "instructions.cuh"
#endif
