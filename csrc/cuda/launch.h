// What the binding calls. Nothing in csrc/cuda includes PyTorch, so that it compiles with nvcc alone.
#pragma once

#include <cuda_runtime_api.h>

#include "../topk_affinity/propagate_sequence.h"
#include "topk_affinity.h"

namespace timecycle {

// All pointers are on the current device; the work is put on `stream`.
cudaError_t propagate_sequence_cuda(const Sequence& call, cudaStream_t stream);

}  // namespace timecycle
