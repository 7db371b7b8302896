// The work items of every block, computed without running a kernel.
#include "work.cuh"

namespace timecycle {
namespace {

template <bool NEIGHBORHOOD>
int64_t items(const Problem& call, int blocks, int64_t* out, int64_t capacity) {
  int64_t count = 0;
  for (int block = 0; block < blocks; ++block) {
    BlockWork<NEIGHBORHOOD> work;
    work.start(block, blocks);
    while (work.next(call)) {
      const WorkItem& item = work.item;
      if (++count > capacity) continue;
      for (const int64_t value : {int64_t{block}, int64_t{item.target}, int64_t{item.queries}, int64_t{item.slot},
                                  int64_t{item.first}, int64_t{item.last}, int64_t{item.list}}) {
        *out++ = value;
      }
    }
  }
  return count;
}

}  // namespace
}  // namespace timecycle

// Writes up to `capacity` items [block, target, queries, slot, first, last, list] and returns how many there are.
// sizes: targets, bank frames, rows and columns of queries, and of keys, slots, parts, rounds, blocks, the
// neighborhood's bounds (3), whether there is a neighborhood, joint, lists of a block.
extern "C" __attribute__((visibility("default"))) int64_t work_items(const int64_t* frames, const int64_t* multiplicity,
                                                                     const int32_t* before, const int* sizes,
                                                                     int64_t* out, int64_t capacity) {
  timecycle::Problem call{};
  call.frames = frames, call.multiplicity = multiplicity, call.before = before;
  call.targets = sizes[0], call.bank_frames = sizes[1];
  call.queries = {sizes[2], sizes[3]}, call.positions = {sizes[4], sizes[5]};
  call.slots = sizes[6], call.parts = sizes[7], call.rounds = sizes[8];
  call.rows = sizes[10], call.columns = sizes[11], call.limit = sizes[12];
  call.neighborhood = sizes[13], call.joint = sizes[14], call.lists = sizes[15];
  return call.neighborhood ? timecycle::items<true>(call, sizes[9], out, capacity)
                           : timecycle::items<false>(call, sizes[9], out, capacity);
}
