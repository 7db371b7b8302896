// The functions that bindings.cpp calls. Nothing in csrc/cuda includes PyTorch, so that nvcc alone compiles it.
#pragma once

#include <cuda_runtime_api.h>

#include "../topk_affinity/propagate_sequence.h"
#include "topk_affinity.h"

namespace timecycle {

// All pointers are on the current device.
cudaError_t propagate_sequence_cuda(const Sequence& call, cudaStream_t stream);

}  // namespace timecycle
