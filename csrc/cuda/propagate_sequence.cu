// propagate_sequence on a GPU: one cooperative launch for a whole video, its blocks meeting after each target.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include "launch.h"

namespace timecycle {
namespace {

constexpr int kThreads = 256;  // and four blocks a multiprocessor: left alone, ptxas spills to fit in six

struct Grid {
  static constexpr int kLanes = 32, kClasses = 1;

  __device__ int64_t group() const { return (blockIdx.x * int64_t{kThreads} + threadIdx.x) / kLanes; }
  __device__ int64_t groups() const { return gridDim.x * int64_t{kThreads} / kLanes; }
  __device__ int lane() const { return threadIdx.x % kLanes; }
  __device__ void barrier() { cooperative_groups::this_grid().sync(); }

  __device__ void lower(uint32_t* number, uint32_t value) {
    value = __reduce_min_sync(0xffffffffu, value);
    if (lane() == 0) atomicMin(number, value);
  }

  __device__ void raise(uint32_t* number, uint32_t value) {
    value = __reduce_max_sync(0xffffffffu, value);
    if (lane() == 0) atomicMax(number, value);
  }
};

__global__ void __launch_bounds__(kThreads, 4) propagate_sequence_kernel(const Sequence call) {
  Grid team;
  propagate_sequence(call, team);
}

}  // namespace

cudaError_t propagate_sequence_cuda(const Sequence& call, cudaStream_t stream) {
  int device, processors, blocks;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) {
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, propagate_sequence_kernel, kThreads, 0);
  }
  if (error != cudaSuccess) return error;
  // No more blocks than there is work for: a barrier takes longer the more there are.
  const int64_t groups = (call.positions + Grid::kLanes - 1) / Grid::kLanes * call.classes;
  const int64_t wanted = (groups * Grid::kLanes + kThreads - 1) / kThreads;
  const int64_t most = int64_t{processors} * blocks;
  void* arguments[] = {const_cast<Sequence*>(&call)};
  return cudaLaunchCooperativeKernel(propagate_sequence_kernel, static_cast<unsigned>(wanted < most ? wanted : most),
                                     kThreads, arguments, 0, stream);
}

}  // namespace timecycle
