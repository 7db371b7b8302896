// topk_affinity on Ampere and later chips that are not Hopper: each of eight warps copies, multiplies and keeps lists.
//
// Queries and keys are both streamed, a chunk of channels at a time: of two chunks in shared memory, one is multiplied
// while the other arrives.
#include "row_candidates.cuh"
#include "row_lists.cuh"
#include "work.cuh"

namespace timecycle {
namespace {

constexpr int kThreads = 256;
constexpr int kStages = 2;  // of queries and keys
constexpr int kCapacity = 15;
constexpr int kLists = lists_of_a_block(false);
constexpr int kHalf = kPatch / kLists;  // keys of a warp
using Buffer = CandidateBuffer<kCapacity>;
constexpr int kShared =
    kStages * 2 * kChunkBytes + kThreads / 32 * int(sizeof(Buffer)) + int(sizeof(BlockWork<true>)) + 16;
static_assert(sizeof(BlockWork<true>) == sizeof(BlockWork<false>));

// A warp has 32 rows of queries, and half of the keys of a patch.
struct WarpTile {
  ON_DEVICE static int first_row(int block) { return chip::thread() / 64 * 32 + 16 * block; }
  ON_DEVICE static int first_column() { return chip::thread() / 32 % 2 * kHalf; }
};

// A warp keeps the lists of its own candidates.
template <int K, bool NEIGHBORHOOD>
struct ListSink {
  RowLists<K, NEIGHBORHOOD, WarpTile>& lists;
  Buffer& buffer;
  const SlotPatches<NEIGHBORHOOD>& slot;
  int first = 0, next = 0;  // the index of the patch's first key, and the number of the patch that is to come

  ON_DEVICE void wait() const { chip::sync_warp(); }
  ON_DEVICE void take_candidates(bool more) const {
    chip::sync_warp();
    lists.take(buffer, first);
    chip::sync_warp();
    if (!more) buffer.threshold[chip::lane()] = lists.threshold(slot, next);
  }
  ON_DEVICE void take_sums() const { chip::sync_warp(); }
};

// The byte offset of eight channels of a row: the eighths of a row are swizzled, so that neither copies nor
// load_matrices have bank conflicts.
ON_DEVICE int swizzled(int row, int eighth) { return row * 128 + ((eighth ^ row % 8) << 4); }

// One thread's part of a patch: the same eight channels of every 32nd row.
template <bool NEIGHBORHOOD>
struct Source {
  const char* first;  // its first row
  int64_t step;       // bytes from one of its rows to the next
  // Rows (without a neighborhood: positions) from its first row on, and those of a step.
  int rows_left, rows_step;

  ON_DEVICE Source(const void* base, int64_t offset, int64_t stride, Patch<NEIGHBORHOOD> patch, Extent grid) {
    const int row = chip::thread() / 8;
    const int y = patch.y + row / Patch<NEIGHBORHOOD>::kWide, x = patch.x + row % Patch<NEIGHBORHOOD>::kWide;
    first = static_cast<const char*>(base) + 2 * (offset + (int64_t{y} * grid.width + x) * stride);
    rows_step = NEIGHBORHOOD ? 32 / Patch<NEIGHBORHOOD>::kWide : 32;
    step = 2 * stride * (NEIGHBORHOOD ? int64_t{rows_step} * grid.width : rows_step);
    rows_left = !NEIGHBORHOOD ? grid.width - x : x < grid.width ? grid.height - y : 0;
  }

  // This thread's part of chunk c; zeros outside the grid and beyond the channels.
  ON_DEVICE void copy(char* to, int c, int channels) const {
    const int thread = chip::thread(), channel = c * kChunk + thread % 8 * 8;
#pragma unroll
    for (int i = 0; i < kPatch / 32; ++i) {
      const bool present = channel < channels && rows_left > i * rows_step;
      // The address must be good even where nothing is read.
      const char* const from = present ? first + i * step + 2 * channel : nullptr;
      chip::copy_16(to + swizzled(thread / 8 + 32 * i, thread % 8), from, present);
    }
  }
};

// Adds the products of one chunk: of 32 rows of queries and 64 keys.
template <class T>
ON_DEVICE void multiply_chunk(float (&sums)[2][kHalf / 2], const char* queries, const char* keys, int first_row,
                              int first_column) {
  const int lane = chip::lane();
#pragma unroll
  for (int step = 0; step < kChunk / 16; ++step) {
    uint32_t a[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      chip::load_matrices(a[m], queries + swizzled(first_row + 16 * m + lane % 16, 2 * step + lane / 16));
    }
#pragma unroll
    for (int n = 0; n < kHalf / 16; ++n) {
      uint32_t b[4];
      const int row = first_column + 16 * n + lane % 8 + lane / 16 * 8;
      chip::load_matrices(b, keys + swizzled(row, 2 * step + lane / 8 % 2));
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        chip::multiply<T>(&sums[m][8 * n], a[m], b);
        chip::multiply<T>(&sums[m][8 * n + 4], a[m], b + 2);
      }
    }
  }
}

template <class T, int K, bool NEIGHBORHOOD>
KERNEL(kThreads, 1)
scan_sm80(KERNEL_PARAMETER Problem p) {
#if FOR_SM80
  DYNAMIC_SHARED(shared);
  Buffer* const buffer = reinterpret_cast<Buffer*>(shared + kStages * 2 * kChunkBytes);
  BlockWork<NEIGHBORHOOD>& work = *reinterpret_cast<BlockWork<NEIGHBORHOOD>*>(buffer + kThreads / 32);
  bool& more = *reinterpret_cast<bool*>(&work + 1);
  const int warp = chip::thread() / 32, half = warp % 2, first_row = warp / 2 * 32;
  const int chunks = chunks_of(p);
  RowLists<K, NEIGHBORHOOD, WarpTile> lists(p, work.item);
  ListSink<K, NEIGHBORHOOD> sink{lists, buffer[warp], work.slot};
  RowCandidates<K, kHalf, kCapacity, NEIGHBORHOOD, WarpTile, ListSink<K, NEIGHBORHOOD>> rows(p, buffer[warp], work.item,
                                                                                             sink);
  if (chip::thread() == 0) work.start(chip::block(), int(chip::blocks()));
  for (;;) {
    chip::sync_block();  // all threads are done with the item
    if (chip::thread() == 0) more = work.next(p);
    chip::sync_block();
    if (!more) break;
    const WorkItem& item = work.item;
    if (item.begins) {
      lists.clear();
      rows.clear();
    }
    const SlotPatches<NEIGHBORHOOD>& slot = work.slot;
    for (typename BlockWork<NEIGHBORHOOD>::Keys keys(work); keys.next(p, work);) {
      float sums[2][kHalf / 2] = {};
      const auto copy = [&](int c) {
        const Source<NEIGHBORHOOD> query(p.query, item.target * p.query_b, p.query_n, work.queries(), p.queries);
        const Source<NEIGHBORHOOD> key(p.bank, int64_t{slot.frame} * p.bank_f, p.bank_m, keys.patch, p.positions);
        char* const stage = shared + c % kStages * 2 * kChunkBytes;
        query.copy(stage, c, p.channels);
        key.copy(stage + kChunkBytes, c, p.channels);
      };
      copy(0);
      chip::copies_commit();
#pragma unroll 1
      for (int c = 0; c < chunks; ++c) {
        if (c + 1 < chunks) copy(c + 1);
        chip::copies_commit();
        chip::copies_wait<1>();
        chip::sync_block();  // chunk c of every thread has arrived
        const char* const stage = shared + c % kStages * 2 * kChunkBytes;
        multiply_chunk<T>(sums, stage, stage + kChunkBytes, first_row, half * kHalf);
        chip::sync_block();  // and may be overwritten
      }
      sink.first = index_of_first(p, item, keys.patch);
      sink.next = keys.number + 1;
      rows.take(sums, slot, keys.patch);
    }
    if (item.ends) {
      rows.end();
      Buffer* const own[1] = {&buffer[warp]};
      lists.store(own, item.list + half);
      lists.clear();
      rows.clear();
    }
  }
#endif
}

}  // namespace

cudaError_t topk_affinity_sm80(const Problem& p, int blocks, cudaStream_t stream) {
  if (p.lists != kLists) return cudaErrorInvalidValue;
  return with_instance(p, [&]<class T, int K, bool NEIGHBORHOOD>() {
    // Compiled for Hopper the kernel is empty, and would leave its outputs as they were.
    if (chip::is_for_hopper(scan_sm80<T, K, NEIGHBORHOOD>)) return cudaErrorInvalidKernelImage;
    return chip::launch(scan_sm80<T, K, NEIGHBORHOOD>, blocks, kThreads, kShared, stream, p);
  });
}

}  // namespace timecycle
