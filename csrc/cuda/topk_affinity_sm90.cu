// topk_affinity on Hopper: one thread copies, two warpgroups multiply and find candidates, and four warps keep the
// lists. NOTES.md has the counts behind the shapes.
//
// The multiplying groups take turns at whole patches of keys, so that one looks at its products while the other
// multiplies. Each of their warps pushes its candidates to the warp that keeps the lists of its rows, which is the same
// one for both groups, so that a row has one list. Queries stay in shared memory where 128 of them fit; else they are
// streamed along with the keys, a chunk of channels each.
#include "row_candidates.cuh"
#include "row_lists.cuh"
#include "work.cuh"

namespace timecycle {
namespace {

constexpr int kThreads = 512, kMultiplying = 2;  // groups of 128 threads; the third keeps the lists, the fourth copies
constexpr int kLists = lists_of_a_block(true);
constexpr int kResident = 8;  // chunks of queries that stay
constexpr int kStages = 4;    // of keys, beside them
constexpr int kBuffers = kResident + kStages;
constexpr int kStreamedStages = kBuffers / 2;  // of queries and keys
constexpr int kCapacity = 15;
using Buffer = CandidateBuffer<kCapacity>;

struct Barriers {
  chip::Barrier queries, free;  // the resident queries: arrived, and no longer needed
  chip::Barrier full[kStreamedStages], empty[kStreamedStages];
  chip::Barrier multiplied[kMultiplying];  // a patch, by a group
  // Of each multiplying warp: its buffer is full, and has been taken.
  chip::Barrier handed_over[4 * kMultiplying], taken[4 * kMultiplying];
};
constexpr int kWarps = 4 * kMultiplying, kKeepers = 4;
constexpr int kWorks = kWarps + kKeepers + 1;  // of each warp, and of the thread that copies
constexpr int kShared = kBuffers * kChunkBytes + kWarps * int(sizeof(Buffer)) + int(sizeof(Barriers)) +
                        kWorks * int(sizeof(BlockWork<true>));
static_assert(sizeof(BlockWork<true>) == sizeof(BlockWork<false>) && kShared <= chip::kLargestShared);

// A warp has 16 rows of either half of the queries, and all keys of a patch.
struct WarpTile {
  ON_DEVICE static int first_row(int block) { return chip::thread() / 32 % 4 * 16 + 64 * block; }
  ON_DEVICE static int first_column() { return 0; }
};

// The ring of stages: every chunk of keys passes through one.
struct Ring {
  const int stages;
  int stage = 0;
  uint32_t parity = 0;

  ON_DEVICE void advance() {
    if (++stage < stages) return;
    stage = 0;
    parity ^= 1;
  }
  ON_DEVICE void advance(int steps) {
    const int at = stage + steps;
    stage = at % stages;
    parity ^= at / stages & 1;
  }
};

// The buffers of chunks. Resident queries come first, chunk after chunk; streamed ones are beside their keys.
struct Layout {
  char* const buffers;
  const bool streamed;

  ON_DEVICE int stages() const { return streamed ? kStreamedStages : kStages; }
  ON_DEVICE char* keys(int stage) const { return buffers + (streamed ? 2 * stage : kResident + stage) * kChunkBytes; }
  ON_DEVICE char* queries(int stage, int chunk) const {
    return buffers + (streamed ? 2 * stage + 1 : chunk) * kChunkBytes;
  }
};

template <bool NEIGHBORHOOD>
ON_DEVICE void copy(const Problem& p, const chip::Boxes& queries, const chip::Boxes& bank, Layout layout,
                    Barriers& barriers, BlockWork<NEIGHBORHOOD>& work) {
  const int chunks = chunks_of(p);
  Ring ring{layout.stages()};
  int loads = 0;
  while (work.next(p)) {
    const WorkItem& item = work.item;
    if (!layout.streamed && item.begins) {
      chip::wait(barriers.free, ++loads & 1);
      chip::arrive_and_expect(barriers.queries, chunks * kChunkBytes);
#pragma unroll 1
      for (int c = 0; c < chunks; ++c) {
        chip::copy_box(layout.queries(0, c), queries, c * kChunk, item.x, item.y, item.target, barriers.queries);
      }
    }
    for (typename BlockWork<NEIGHBORHOOD>::Keys keys(work); keys.next(p, work);) {
#pragma unroll 1
      for (int c = 0; c < chunks; ++c, ring.advance()) {
        chip::Barrier& full = barriers.full[ring.stage];
        chip::wait(barriers.empty[ring.stage], ring.parity ^ 1);
        chip::arrive_and_expect(full, (layout.streamed ? 2 : 1) * kChunkBytes);
        chip::copy_box(layout.keys(ring.stage), bank, c * kChunk, keys.patch.x, keys.patch.y, work.slot.frame, full);
        if (!layout.streamed) continue;
        char* const to = layout.queries(ring.stage, c);
        chip::copy_box(to, queries, c * kChunk, item.x, item.y, item.target, full);
      }
    }
  }
}

// Products of the queries with one patch of keys, 64 queries in each half of `sums`.
template <class T>
ON_DEVICE void multiply_patch(float (&sums)[2][64], int chunks, Layout layout, Ring& ring, Barriers& barriers,
                              chip::Barrier& multiplied) {
  int last = 0;
#pragma unroll 1
  for (int c = 0; c < chunks; ++c) {
    chip::wait(barriers.full[ring.stage], ring.parity);
    const chip::Operand keys(layout.keys(ring.stage)), queries(layout.queries(ring.stage, c));
    chip::products_begin();
#pragma unroll
    for (int step = 0; step < kChunk / 16; ++step) {
      chip::multiply<T>(sums[0], queries.after(32 * step), keys.after(32 * step), c + step > 0);
      chip::multiply<T>(sums[1], queries.after(32 * step + kChunkBytes / 2), keys.after(32 * step), c + step > 0);
    }
    chip::products_commit();
    if (c + 1 == chunks && chip::lane() == 0) chip::arrive(multiplied);
    if (c > 0) {
      chip::products_wait<1>();
      if (chip::lane() == 0) chip::arrive(barriers.empty[last]);
    }
    last = ring.stage;
    ring.advance();
  }
  chip::products_wait<0>();
  for (float (&half)[64] : sums) chip::sums_are_known(half);
  if (chip::lane() == 0) chip::arrive(barriers.empty[last]);
}

// The warp that keeps the lists, as seen by a multiplying warp.
struct ListSink {
  Buffer& buffer;
  chip::Barrier &handed_over, &taken;
  uint32_t times = 0;

  ON_DEVICE void wait() const {
    if (times > 0) chip::wait(taken, times - 1 & 1);
  }
  ON_DEVICE void take_candidates(bool more) {
    if (chip::lane() == 0) buffer.more = more;
    take_sums();
  }
  ON_DEVICE void take_sums() {
    chip::sync_warp();
    if (chip::lane() == 0) chip::arrive(handed_over);
    ++times;
  }
};

template <class T, int K, bool NEIGHBORHOOD>
ON_DEVICE void multiply(const Problem& p, Layout layout, Barriers& barriers, Buffer& buffer,
                        BlockWork<NEIGHBORHOOD>& work) {
  const int warp = chip::thread() / 32, half = warp / 4, chunks = chunks_of(p);
  ListSink sink{buffer, barriers.handed_over[warp], barriers.taken[warp]};
  RowCandidates<K, kPatch, kCapacity, NEIGHBORHOOD, WarpTile, ListSink> rows(p, buffer, work.item, sink);
  Ring ring{layout.stages()};
  int turn = 0, loads = 0;
  while (chip::any(chip::lane() == 0 && work.next(p))) {
    chip::sync_warp();  // lane 0 has written the item
    const WorkItem& item = work.item;
    if (item.begins) {
      if (!layout.streamed) {
        if (loads > 0 && chip::lane() == 0) chip::arrive(barriers.free);
        chip::wait(barriers.queries, loads++ & 1);
      }
      rows.clear();
    }
    chip::sync_warp();
    for (typename BlockWork<NEIGHBORHOOD>::Keys keys(work); keys.next(p, work);) {
      const int before = turn++ - 1;
      if (turn % kMultiplying == half) {
        ring.advance(chunks);
        continue;
      }
      // Only then is a stage at most one phase behind, which is all that a parity can tell.
      if (before >= 0) chip::wait(barriers.multiplied[1 - half], before / kMultiplying & 1);
      float sums[2][64];
      multiply_patch<T>(sums, chunks, layout, ring, barriers, barriers.multiplied[half]);
      rows.take(sums, work.slot, keys.patch);
    }
    if (item.ends) {
      rows.end();
      rows.clear();
    }
    chip::sync_warp();  // all lanes are done with the item
  }
}

// Takes what two warps of the multiplying groups push, in the order of their turns.
template <int K, bool NEIGHBORHOOD>
ON_DEVICE void keep(const Problem& p, Barriers& barriers, Buffer* buffer, BlockWork<NEIGHBORHOOD>& work) {
  const int own = chip::thread() / 32 % kKeepers;
  RowLists<K, NEIGHBORHOOD, WarpTile> lists(p, work.item);
  uint32_t parities = 0;  // one bit for the buffer of each group
  const auto wait = [&](int half) {
    chip::wait(barriers.handed_over[kKeepers * half + own], parities >> half & 1);
    parities ^= 1u << half;
  };
  const auto taken = [&](int half) {
    chip::sync_warp();
    if (chip::lane() == 0) chip::arrive(barriers.taken[kKeepers * half + own]);
  };
  int turn = 0;
  while (chip::any(chip::lane() == 0 && work.next(p))) {
    chip::sync_warp();  // lane 0 has written the item
    const WorkItem& item = work.item;
    if (item.begins) lists.clear();
    for (typename BlockWork<NEIGHBORHOOD>::Keys keys(work); keys.next(p, work);) {
      const int half = turn++ % kMultiplying;
      Buffer& from = buffer[kKeepers * half + own];
      for (;;) {
        wait(half);
        const bool more = from.more;
        lists.take(from, index_of_first(p, item, keys.patch));
        // The group's next patch is the next but one.
        if (!more) from.threshold[chip::lane()] = lists.threshold(work.slot, keys.number + kMultiplying);
        taken(half);
        if (!more) break;
      }
    }
    if (item.ends) {
      Buffer* const both[kMultiplying] = {&buffer[own], &buffer[kKeepers + own]};
#pragma unroll
      for (int half = 0; half < kMultiplying; ++half) wait(half);
      lists.store(both, item.list);
#pragma unroll
      for (int half = 0; half < kMultiplying; ++half) taken(half);
      lists.clear();
    }
    chip::sync_warp();  // all lanes are done with the item
  }
}

template <class T, int K, bool NEIGHBORHOOD>
KERNEL(kThreads, 1)
scan_sm90(KERNEL_PARAMETER chip::Boxes queries, KERNEL_PARAMETER chip::Boxes bank, KERNEL_PARAMETER Problem p) {
#if FOR_SM90
  // Registers of a thread of each kind of group. With a neighborhood the thread that copies needs more, to plan.
  constexpr int kToMultiply = 192, kToKeep = NEIGHBORHOOD ? 88 : 96;
  constexpr int kToCopy = 65536 / 128 - kMultiplying * kToMultiply - kToKeep;
  DYNAMIC_SHARED(shared);
  Buffer* const buffer = reinterpret_cast<Buffer*>(shared + kBuffers * kChunkBytes);
  Barriers& barriers = *reinterpret_cast<Barriers*>(buffer + kWarps);
  BlockWork<NEIGHBORHOOD>* const works = reinterpret_cast<BlockWork<NEIGHBORHOOD>*>(&barriers + 1);
  const Layout layout{shared, p.channels > kResident * kChunk};
  if (chip::thread() == 0) {
    chip::init(barriers.queries, 1);
    chip::init(barriers.free, kWarps);
    for (int i = 0; i < layout.stages(); ++i) {
      chip::init(barriers.full[i], 1);
      chip::init(barriers.empty[i], 4);  // the warps of the group that multiplied it
    }
    for (chip::Barrier& barrier : barriers.multiplied) chip::init(barrier, 4);
    for (int i = 0; i < kWarps; ++i) {
      chip::init(barriers.handed_over[i], 1);
      chip::init(barriers.taken[i], 1);
    }
    chip::publish_barriers();
    for (int i = 0; i < kWorks; ++i) works[i].start(chip::block(), int(chip::blocks()));
  }
  chip::sync_block();
  const int warp = chip::thread() / 32;
  if (warp < kWarps) {
    chip::take_registers<kToMultiply>();
    multiply<T, K, NEIGHBORHOOD>(p, layout, barriers, buffer[warp], works[warp]);
  } else if (warp < kWarps + kKeepers) {
    chip::leave_registers<kToKeep>();
    keep<K, NEIGHBORHOOD>(p, barriers, buffer, works[warp]);
  } else {
    chip::leave_registers<kToCopy>();
    if (chip::thread() == 32 * (kWarps + kKeepers)) copy<NEIGHBORHOOD>(p, queries, bank, layout, barriers, works[warp]);
  }
#endif
}

template <class T, int K, bool NEIGHBORHOOD>
cudaError_t start(const Problem& p, int blocks, cudaStream_t stream) {
  using P = Patch<NEIGHBORHOOD>;
  const bool is_bfloat16 = p.dtype == Dtype::bfloat16;
  const auto [height, width] = p.queries;
  const auto [key_height, key_width] = p.positions;
  chip::Boxes queries, bank;
  cudaError_t error = chip::make_boxes(queries, p.query, is_bfloat16, {p.channels, width, height, p.targets},
                                       {p.query_n, p.query_n * width, p.query_b}, P::kWide, P::kTall);
  if (error != cudaSuccess) return error;
  error = chip::make_boxes(bank, p.bank, is_bfloat16, {p.channels, key_width, key_height, p.bank_frames},
                           {p.bank_m, p.bank_m * key_width, p.bank_f}, P::kWide, P::kTall);
  if (error != cudaSuccess) return error;
  return chip::launch(scan_sm90<T, K, NEIGHBORHOOD>, blocks, kThreads, kShared, stream, queries, bank, p);
}

}  // namespace

cudaError_t topk_affinity_sm90(const Problem& p, int blocks, cudaStream_t stream) {
  if (p.lists != kLists) return cudaErrorInvalidValue;
  return with_instance(
      p, [&]<class T, int K, bool NEIGHBORHOOD>() { return start<T, K, NEIGHBORHOOD>(p, blocks, stream); });
}

}  // namespace timecycle
