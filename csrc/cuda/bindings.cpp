// The CUDA kernels as Python functions of addresses and sizes; timecycle/ops declares the operators and checks tensors.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "launch.h"

namespace {

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

void propagate_sequence(uintptr_t weights, uintptr_t indices, uintptr_t labels, uintptr_t frames, uintptr_t targets,
                        uintptr_t extremes, int64_t target_count, int64_t positions, int64_t kept, int64_t slots,
                        int64_t classes, bool rescale, uintptr_t stream) {
  const timecycle::Sequence call{.weights = pointer<const float>(weights),
                                 .indices = pointer<const int64_t>(indices),
                                 .frames = pointer<const int64_t>(frames),
                                 .targets = pointer<const int64_t>(targets),
                                 .labels = pointer<float>(labels),
                                 .extremes = pointer<uint32_t>(extremes),
                                 .target_count = target_count,
                                 .positions = positions,
                                 .kept = kept,
                                 .slots = slots,
                                 .classes = classes,
                                 .rescale = rescale};
  check(timecycle::propagate_sequence_cuda(call, reinterpret_cast<cudaStream_t>(stream)), "propagate_sequence");
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "timecycle's CUDA kernels; tensors as addresses on the current device, contiguous";
  module.def("propagate_sequence", propagate_sequence);
}
