// topk_affinity on Ampere and later chips that are not Hopper: eight warps that each copy, multiply and look.
//
// Queries and keys are both streamed, a chunk of channels at a time: two chunks lie in shared memory, one is multiplied
// while the other arrives.
#include "row_hits.cuh"
#include "row_lists.cuh"
#include "work.cuh"

namespace timecycle {
namespace {

constexpr int kThreads = 256;
constexpr int kStages = 2;  // of queries and keys
constexpr int kRoom = 15;
constexpr int kLists = lists_of_a_block(false);
constexpr int kHalf = kPatch / kLists;  // keys of a warp
using Left = Hits<kRoom>;
constexpr int kShared = kStages * 2 * kPiece + kThreads / 32 * int(sizeof(Left)) + int(sizeof(Work<true>)) + 16;
static_assert(sizeof(Work<true>) == sizeof(Work<false>));

// A warp has 32 rows of queries, and half of the keys of a patch.
struct WarpShare {
  ON_DEVICE static int first_row(int block) { return chip::thread() / 64 * 32 + 16 * block; }
  ON_DEVICE static int first_column() { return chip::thread() / 32 % 2 * kHalf; }
};

// A warp keeps the lists of its own hits.
template <int K, bool REGION>
struct Keeper {
  RowLists<K, REGION, WarpShare>& lists;
  Left& hits;
  const Slot<REGION>& slot;
  int first = 0, next = 0;  // the index of the patch's first key, and the number of the patch that is to come

  ON_DEVICE void wait() const { chip::sync_warp(); }
  ON_DEVICE void take_hits(bool more) const {
    chip::sync_warp();
    lists.take(hits, first);
    chip::sync_warp();
    if (!more) hits.gate[chip::lane()] = lists.gate(slot, next);
  }
  ON_DEVICE void take_sums() const { chip::sync_warp(); }
};

// Where eight channels of a row are: the eighths of a row are shuffled, so that neither copies nor load_matrices meet
// in one bank.
ON_DEVICE int place(int row, int eighth) { return row * 128 + ((eighth ^ row % 8) << 4); }

// One thread's part of a patch: the same eight channels of every 32nd row.
template <bool REGION>
struct Source {
  const char* first;  // its first row
  int64_t step;       // bytes from one of its rows to the next
  int room,
      rooms_step;  // rows (or positions, without a neighborhood) left from its first row on, and what a step takes

  ON_DEVICE Source(const void* base, int64_t offset, int64_t stride, Patch<REGION> patch, Extent grid) {
    const int row = chip::thread() / 8;
    const int y = patch.y + row / Patch<REGION>::kWide, x = patch.x + row % Patch<REGION>::kWide;
    first = static_cast<const char*>(base) + 2 * (offset + (int64_t{y} * grid.width + x) * stride);
    rooms_step = REGION ? 32 / Patch<REGION>::kWide : 32;
    step = 2 * stride * (REGION ? int64_t{rooms_step} * grid.width : rooms_step);
    room = !REGION ? grid.width - x : x < grid.width ? grid.height - y : 0;
  }

  // Chunk c, in part; what is outside of the grid or beyond the channels becomes zeros.
  ON_DEVICE void copy(char* to, int c, int channels) const {
    const int thread = chip::thread(), channel = c * kChunk + thread % 8 * 8;
#pragma unroll
    for (int i = 0; i < kPatch / 32; ++i) {
      const bool there = channel < channels && room > i * rooms_step;
      // The address must be good even where nothing is read.
      const char* const from = there ? first + i * step + 2 * channel : nullptr;
      chip::copy_16(to + place(thread / 8 + 32 * i, thread % 8), from, there);
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
      chip::load_matrices(a[m], queries + place(first_row + 16 * m + lane % 16, 2 * step + lane / 16));
    }
#pragma unroll
    for (int n = 0; n < kHalf / 16; ++n) {
      uint32_t b[4];
      const int row = first_column + 16 * n + lane % 8 + lane / 16 * 8;
      chip::load_matrices(b, keys + place(row, 2 * step + lane / 8 % 2));
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        chip::multiply<T>(&sums[m][8 * n], a[m], b);
        chip::multiply<T>(&sums[m][8 * n + 4], a[m], b + 2);
      }
    }
  }
}

template <class T, int K, bool REGION>
KERNEL(kThreads, 1)
scan_sm80(KERNEL_PARAMETER Scan call) {
#if FOR_SM80
  DYNAMIC_SHARED(shared);
  Left* const hits = reinterpret_cast<Left*>(shared + kStages * 2 * kPiece);
  Work<REGION>& work = *reinterpret_cast<Work<REGION>*>(hits + kThreads / 32);
  bool& more = *reinterpret_cast<bool*>(&work + 1);
  const int warp = chip::thread() / 32, half = warp % 2, first_row = warp / 2 * 32;
  const int chunks = chunks_of(call);
  RowLists<K, REGION, WarpShare> lists(call, work.piece);
  Keeper<K, REGION> keeper{lists, hits[warp], work.slot};
  RowHits<K, kHalf, kRoom, REGION, WarpShare, Keeper<K, REGION>> rows(call, hits[warp], work.piece, keeper);
  if (chip::thread() == 0) work.start(chip::block(), int(chip::blocks()));
  for (;;) {
    chip::sync_block();  // all threads are done with the piece
    if (chip::thread() == 0) more = work.next(call);
    chip::sync_block();
    if (!more) break;
    const Piece& piece = work.piece;
    if (piece.begins) {
      lists.clear();
      rows.clear();
    }
    const Slot<REGION>& slot = work.slot;
    for (typename Work<REGION>::Keys keys(work); keys.next(call, work);) {
      float sums[2][kHalf / 2] = {};
      const auto copy = [&](int c) {
        const Source<REGION> query(call.query, piece.target * call.query_b, call.query_n, work.queries(), call.queries);
        const Source<REGION> key(call.bank, int64_t{slot.frame} * call.bank_f, call.bank_m, keys.patch, call.positions);
        char* const stage = shared + c % kStages * 2 * kPiece;
        query.copy(stage, c, call.channels);
        key.copy(stage + kPiece, c, call.channels);
      };
      copy(0);
      chip::copies_commit();
#pragma unroll 1
      for (int c = 0; c < chunks; ++c) {
        if (c + 1 < chunks) copy(c + 1);
        chip::copies_commit();
        chip::copies_wait<1>();
        chip::sync_block();  // chunk c of every thread is there
        const char* const stage = shared + c % kStages * 2 * kPiece;
        multiply_chunk<T>(sums, stage, stage + kPiece, first_row, half * kHalf);
        chip::sync_block();  // and may be overwritten
      }
      keeper.first = index_of_first(call, piece, keys.patch);
      keeper.next = keys.number + 1;
      rows.take(sums, slot, keys.patch);
    }
    if (piece.ends) {
      rows.end();
      Left* const own[1] = {&hits[warp]};
      lists.store(own, piece.list + half);
      lists.clear();
      rows.clear();
    }
  }
#endif
}

}  // namespace

cudaError_t topk_affinity_sm80(const Scan& call, int blocks, cudaStream_t stream) {
  if (call.lists != kLists) return cudaErrorInvalidValue;
  return with_instance(call, [&]<class T, int K, bool REGION>() {
    // Compiled for Hopper the kernel is empty, and would leave what was there before as its result.
    if (chip::is_for_hopper(scan_sm80<T, K, REGION>)) return cudaErrorInvalidKernelImage;
    return chip::launch(scan_sm80<T, K, REGION>, blocks, kThreads, kShared, stream, call);
  });
}

}  // namespace timecycle
