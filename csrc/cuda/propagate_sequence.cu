// propagate_sequence on a GPU: one cooperative launch for a whole video, with a grid barrier after each target.
#include "chip.h"
#include "launch.h"

namespace timecycle {
namespace {

constexpr int kThreads = 256;  // with launch bounds of four blocks per multiprocessor: without, ptxas spills to fit six

struct Team {
  static constexpr int kLanes = 32, kClasses = 1;

  ON_DEVICE int64_t group() const { return (chip::block() * int64_t{kThreads} + chip::thread()) / kLanes; }
  ON_DEVICE int64_t groups() const { return chip::blocks() * kThreads / kLanes; }
  ON_DEVICE int lane() const { return chip::lane(); }
  ON_DEVICE void barrier() { chip::sync_grid(); }

  ON_DEVICE void lower(uint32_t* number, uint32_t value) {
    value = chip::least(value);
    if (lane() == 0) chip::lower(number, value);
  }

  ON_DEVICE void raise(uint32_t* number, uint32_t value) {
    value = chip::most(value);
    if (lane() == 0) chip::raise(number, value);
  }
};

KERNEL(kThreads, 4) propagate_sequence_kernel(const Sequence call) {
  Team team;
  propagate_sequence(call, team);
}

}  // namespace

cudaError_t propagate_sequence_cuda(const Sequence& call, cudaStream_t stream) {
  // No idle blocks: barriers take longer with more blocks.
  const int64_t groups = (call.positions + Team::kLanes - 1) / Team::kLanes * call.classes;
  const int64_t wanted = (groups * Team::kLanes + kThreads - 1) / kThreads;
  return chip::launch_together(propagate_sequence_kernel, wanted, kThreads, stream, call);
}

}  // namespace timecycle
