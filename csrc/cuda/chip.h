// The few instructions beyond C++ that the kernels are made of, one function each.
//
// There are two versions: the real ones for nvcc, and those of tests/emulator for a CPU, so that the kernels' own code
// can be run and tested without a GPU.
#pragma once

#ifdef TIMECYCLE_EMULATOR
#include "emulator.h"
#else
#include "instructions.cuh"
#endif
