// The CUDA kernels as Python functions; timecycle/ops declares the operators and checks tensors.
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

template <typename T>
T get(pybind11::handle object, const char* name) {
  return object.attr(name).cast<T>();
}

template <typename T>
T* data(pybind11::handle tensor) {
  return pointer<T>(tensor.attr("data_ptr")().cast<uintptr_t>());
}

// A kernels.plan.Plan, its kernels.work.Work, and the tensors that are written: values, indices, tops, sums.
timecycle::Problem problem_of(pybind11::handle plan, pybind11::handle work, const std::array<pybind11::object, 4>& out,
                              bool hopper) {
  const auto description = get<pybind11::object>(plan, "problem");
  const auto [queries, positions] = get<std::array<std::array<int, 2>, 2>>(plan, "grids");
  const auto strides = get<std::array<int64_t, 4>>(plan, "strides");
  const auto bounds = get<std::array<int, 3>>(plan, "bounds");
  return {.query = data<const void>(plan.attr("query")),
          .bank = data<const void>(plan.attr("bank")),
          .frames = data<const int64_t>(plan.attr("frames")),
          .multiplicity = data<const int64_t>(plan.attr("multiplicity")),
          .before = data<const int32_t>(work.attr("before")),
          .values = data<float>(out[0]),
          .indices = data<int32_t>(out[1]),
          .tops = data<float>(out[2]),
          .sums = data<float>(out[3]),
          .targets = get<int64_t>(plan, "targets"),
          .bank_frames = get<int64_t>(plan, "bank_frames"),
          .queries = {queries[0], queries[1]},
          .positions = {positions[0], positions[1]},
          .query_b = strides[0],
          .query_n = strides[1],
          .bank_f = strides[2],
          .bank_m = strides[3],
          .slots = get<int>(plan, "slots"),
          .lists = timecycle::lists_of_a_block(hopper),
          .parts = get<int>(work, "parts"),
          .rounds = get<int>(work, "rounds"),
          .channels = get<int>(plan, "channels"),
          .k = get<int>(description, "k"),
          .rows = bounds[0],
          .columns = bounds[1],
          .limit = bounds[2],
          .softmax_scale_log2 = get<float>(plan, "softmax_scale_log2"),
          .dtype = get<bool>(plan, "is_bfloat16") ? timecycle::Dtype::bfloat16 : timecycle::Dtype::float16,
          .neighborhood = get<bool>(plan, "neighborhood"),
          .joint = get<bool>(description, "joint"),
          .softmax_over_all = get<bool>(description, "softmax_over_all")};
}

// `launch` is a kernels.launch.Launch.
void topk_affinity(pybind11::handle plan, pybind11::handle work, const std::array<pybind11::object, 4>& out,
                   pybind11::handle launch) {
  const auto hopper = get<bool>(launch, "hopper");
  const timecycle::Problem problem = problem_of(plan, work, out, hopper);
  use(get<int>(launch, "device"));
  const auto start = hopper ? timecycle::topk_affinity_sm90 : timecycle::topk_affinity_sm80;
  const auto stream = reinterpret_cast<cudaStream_t>(get<uintptr_t>(launch, "stream"));
  check(start(problem, get<int>(work, "blocks"), stream), "topk_affinity");
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "timecycle's CUDA kernels; tensors as addresses on the current device, contiguous";
  module.def("propagate_sequence", propagate_sequence);
  module.def("topk_affinity", topk_affinity);
  module.def("lists_of_a_block", timecycle::lists_of_a_block);
  module.attr("LARGEST_K") = timecycle::kLargestK;
}
