// The CUDA kernels as Python functions of addresses and sizes; timecycle/ops declares the operators and checks tensors.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
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

// This module has a CUDA runtime of its own, which must work on the same device as PyTorch's.
void use(int device) { check(cudaSetDevice(device), "device"); }

void propagate_sequence(uintptr_t weights, uintptr_t indices, uintptr_t labels, uintptr_t frames, uintptr_t targets,
                        uintptr_t extremes, int64_t target_count, int64_t positions, int64_t kept, int64_t slots,
                        int64_t classes, bool rescale, int device, uintptr_t stream) {
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
  use(device);
  check(timecycle::propagate_sequence_cuda(call, reinterpret_cast<cudaStream_t>(stream)), "propagate_sequence");
}

void topk_affinity(uintptr_t query, uintptr_t bank, uintptr_t frames, uintptr_t multiplicity, uintptr_t before,
                   uintptr_t values, uintptr_t indices, uintptr_t tops, uintptr_t sums, int64_t targets,
                   int64_t bank_frames, std::array<int, 2> queries, std::array<int, 2> positions,
                   std::array<int64_t, 4> strides, int slots, int parts, int rounds, int blocks, int channels, int k,
                   std::array<int, 3> reach, float softmax_scale_log2, bool is_bfloat16, bool neighborhood, bool joint,
                   bool softmax_over_all, bool hopper, int device, uintptr_t stream) {
  const timecycle::Problem call{.query = pointer<const void>(query),
                                .bank = pointer<const void>(bank),
                                .frames = pointer<const int64_t>(frames),
                                .multiplicity = pointer<const int64_t>(multiplicity),
                                .before = pointer<const int32_t>(before),
                                .values = pointer<float>(values),
                                .indices = pointer<int32_t>(indices),
                                .tops = pointer<float>(tops),
                                .sums = pointer<float>(sums),
                                .targets = targets,
                                .bank_frames = bank_frames,
                                .queries = {queries[0], queries[1]},
                                .positions = {positions[0], positions[1]},
                                .query_b = strides[0],
                                .query_n = strides[1],
                                .bank_f = strides[2],
                                .bank_m = strides[3],
                                .slots = slots,
                                .lists = timecycle::lists_of_a_block(hopper),
                                .parts = parts,
                                .rounds = rounds,
                                .channels = channels,
                                .k = k,
                                .rows = reach[0],
                                .columns = reach[1],
                                .limit = reach[2],
                                .softmax_scale_log2 = softmax_scale_log2,
                                .dtype = is_bfloat16 ? timecycle::Dtype::bfloat16 : timecycle::Dtype::float16,
                                .neighborhood = neighborhood,
                                .joint = joint,
                                .softmax_over_all = softmax_over_all};
  use(device);
  const auto start = hopper ? timecycle::topk_affinity_sm90 : timecycle::topk_affinity_sm80;
  check(start(call, blocks, reinterpret_cast<cudaStream_t>(stream)), "topk_affinity");
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "timecycle's CUDA kernels; tensors as addresses on the current device, contiguous";
  module.def("propagate_sequence", propagate_sequence);
  module.def("topk_affinity", topk_affinity);
  module.def("lists_of_a_block", timecycle::lists_of_a_block);
  module.attr("LARGEST_K") = timecycle::kLargestK;
}
