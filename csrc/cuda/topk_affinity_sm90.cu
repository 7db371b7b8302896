// topk_affinity on Hopper: one thread copies, two groups of four warps multiply and look for hits, and four warps keep
// the lists. NOTES.md has the counts behind the shapes.
//
// The groups that multiply take turns at whole patches of keys, so that one looks at its products while the other
// multiplies. Each of their warps hands its hits over to the warp that keeps the lists of its rows, which is the same
// one for both groups, so that a row has one list. Queries stay in shared memory where 128 of them fit; else they are
// streamed along with the keys, a chunk of channels each.
#include "row_hits.cuh"
#include "row_lists.cuh"
#include "work.cuh"

namespace timecycle {
namespace {

constexpr int kThreads = 512, kMultiplying = 2;  // groups of 128 threads; the third keeps the lists, the fourth copies
constexpr int kLists = lists_of_a_block(true);
constexpr int kResident = 8;  // chunks of queries that stay
constexpr int kStages = 4;    // of keys, beside them
constexpr int kPieces = kResident + kStages;
constexpr int kStreamedStages = kPieces / 2;  // of queries and keys
constexpr int kRoom = 15;
using Left = Hits<kRoom>;

struct Barriers {
  chip::Barrier queries, free;  // the queries that stay: there, and no longer needed
  chip::Barrier full[kStreamedStages], empty[kStreamedStages];
  chip::Barrier multiplied[kMultiplying];  // a patch, by a group
  // Of each warp that multiplies: its buffer has something to take, and it has been taken.
  chip::Barrier handed_over[4 * kMultiplying], taken[4 * kMultiplying];
};
constexpr int kWarps = 4 * kMultiplying, kKeepers = 4;
constexpr int kWorks = kWarps + kKeepers + 1;  // each warp has its own Work, and the thread that copies
constexpr int kShared =
    kPieces * kPiece + kWarps * int(sizeof(Left)) + int(sizeof(Barriers)) + kWorks * int(sizeof(Work<true>));
static_assert(sizeof(Work<true>) == sizeof(Work<false>) && kShared <= chip::kLargestShared);

// A warp has 16 rows of either half of the queries, and all keys of a patch.
struct WarpShare {
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

// Where chunks lie. Queries that stay are chunk after chunk; those that are streamed are beside their keys.
struct Layout {
  char* const pieces;
  const bool streamed;

  ON_DEVICE int stages() const { return streamed ? kStreamedStages : kStages; }
  ON_DEVICE char* keys(int stage) const { return pieces + (streamed ? 2 * stage : kResident + stage) * kPiece; }
  ON_DEVICE char* queries(int stage, int chunk) const { return pieces + (streamed ? 2 * stage + 1 : chunk) * kPiece; }
};

template <bool REGION>
ON_DEVICE void copy(const Scan& call, const chip::Boxes& queries, const chip::Boxes& bank, Layout layout,
                    Barriers& barriers, Work<REGION>& work) {
  const int chunks = chunks_of(call);
  Ring ring{layout.stages()};
  int loads = 0;
  while (work.next(call)) {
    const Piece& piece = work.piece;
    if (!layout.streamed && piece.begins) {
      chip::wait(barriers.free, ++loads & 1);
      chip::arrive_and_expect(barriers.queries, chunks * kPiece);
#pragma unroll 1
      for (int c = 0; c < chunks; ++c) {
        chip::copy_box(layout.queries(0, c), queries, c * kChunk, piece.x, piece.y, piece.target, barriers.queries);
      }
    }
    for (typename Work<REGION>::Keys keys(work); keys.next(call, work);) {
#pragma unroll 1
      for (int c = 0; c < chunks; ++c, ring.advance()) {
        chip::Barrier& full = barriers.full[ring.stage];
        chip::wait(barriers.empty[ring.stage], ring.parity ^ 1);
        chip::arrive_and_expect(full, (layout.streamed ? 2 : 1) * kPiece);
        chip::copy_box(layout.keys(ring.stage), bank, c * kChunk, keys.patch.x, keys.patch.y, work.slot.frame, full);
        if (!layout.streamed) continue;
        char* const to = layout.queries(ring.stage, c);
        chip::copy_box(to, queries, c * kChunk, piece.x, piece.y, piece.target, full);
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
      chip::multiply<T>(sums[1], queries.after(32 * step + kPiece / 2), keys.after(32 * step), c + step > 0);
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

// The warp that keeps the lists, as a warp that multiplies sees it.
struct Keeper {
  Left& hits;
  chip::Barrier &handed_over, &taken;
  uint32_t times = 0;

  ON_DEVICE void wait() const {
    if (times > 0) chip::wait(taken, times - 1 & 1);
  }
  ON_DEVICE void take_hits(bool more) {
    if (chip::lane() == 0) hits.more = more;
    take_sums();
  }
  ON_DEVICE void take_sums() {
    chip::sync_warp();
    if (chip::lane() == 0) chip::arrive(handed_over);
    ++times;
  }
};

template <class T, int K, bool REGION>
ON_DEVICE void multiply(const Scan& call, Layout layout, Barriers& barriers, Left& hits, Work<REGION>& work) {
  const int warp = chip::thread() / 32, half = warp / 4, chunks = chunks_of(call);
  Keeper keeper{hits, barriers.handed_over[warp], barriers.taken[warp]};
  RowHits<K, kPatch, kRoom, REGION, WarpShare, Keeper> rows(call, hits, work.piece, keeper);
  Ring ring{layout.stages()};
  int turn = 0, loads = 0;
  while (chip::any(chip::lane() == 0 && work.next(call))) {
    chip::sync_warp();  // what one lane wrote of the piece is there
    const Piece& piece = work.piece;
    if (piece.begins) {
      if (!layout.streamed) {
        if (loads > 0 && chip::lane() == 0) chip::arrive(barriers.free);
        chip::wait(barriers.queries, loads++ & 1);
      }
      rows.clear();
    }
    chip::sync_warp();
    for (typename Work<REGION>::Keys keys(work); keys.next(call, work);) {
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
    if (piece.ends) {
      rows.end();
      rows.clear();
    }
    chip::sync_warp();  // all lanes are done with the piece
  }
}

// Takes what two warps of the groups that multiply hand over, in the order of their turns.
template <int K, bool REGION>
ON_DEVICE void keep(const Scan& call, Barriers& barriers, Left* hits, Work<REGION>& work) {
  const int own = chip::thread() / 32 % kKeepers;
  RowLists<K, REGION, WarpShare> lists(call, work.piece);
  uint32_t parities = 0;  // a bit of each group's buffer
  const auto wait = [&](int half) {
    chip::wait(barriers.handed_over[kKeepers * half + own], parities >> half & 1);
    parities ^= 1u << half;
  };
  const auto taken = [&](int half) {
    chip::sync_warp();
    if (chip::lane() == 0) chip::arrive(barriers.taken[kKeepers * half + own]);
  };
  int turn = 0;
  while (chip::any(chip::lane() == 0 && work.next(call))) {
    chip::sync_warp();  // what one lane wrote of the piece is there
    const Piece& piece = work.piece;
    if (piece.begins) lists.clear();
    for (typename Work<REGION>::Keys keys(work); keys.next(call, work);) {
      const int half = turn++ % kMultiplying;
      Left& from = hits[kKeepers * half + own];
      for (;;) {
        wait(half);
        const bool more = from.more;
        lists.take(from, index_of_first(call, piece, keys.patch));
        // The group's next patch is the next but one.
        if (!more) from.gate[chip::lane()] = lists.gate(work.slot, keys.number + kMultiplying);
        taken(half);
        if (!more) break;
      }
    }
    if (piece.ends) {
      Left* const both[kMultiplying] = {&hits[own], &hits[kKeepers + own]};
#pragma unroll
      for (int half = 0; half < kMultiplying; ++half) wait(half);
      lists.store(both, piece.list);
#pragma unroll
      for (int half = 0; half < kMultiplying; ++half) taken(half);
      lists.clear();
    }
    chip::sync_warp();  // all lanes are done with the piece
  }
}

template <class T, int K, bool REGION>
KERNEL(kThreads, 1)
scan_sm90(KERNEL_PARAMETER chip::Boxes queries, KERNEL_PARAMETER chip::Boxes bank, KERNEL_PARAMETER Scan call) {
#if FOR_SM90
  // Registers of a thread of each kind of group. With a neighborhood the thread that copies needs more, to plan.
  constexpr int kToMultiply = 192, kToKeep = REGION ? 88 : 96;
  constexpr int kToCopy = 65536 / 128 - kMultiplying * kToMultiply - kToKeep;
  DYNAMIC_SHARED(shared);
  Left* const hits = reinterpret_cast<Left*>(shared + kPieces * kPiece);
  Barriers& barriers = *reinterpret_cast<Barriers*>(hits + kWarps);
  Work<REGION>* const works = reinterpret_cast<Work<REGION>*>(&barriers + 1);
  const Layout layout{shared, call.channels > kResident * kChunk};
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
    multiply<T, K, REGION>(call, layout, barriers, hits[warp], works[warp]);
  } else if (warp < kWarps + kKeepers) {
    chip::leave_registers<kToKeep>();
    keep<K, REGION>(call, barriers, hits, works[warp]);
  } else {
    chip::leave_registers<kToCopy>();
    if (chip::thread() == 32 * (kWarps + kKeepers)) copy<REGION>(call, queries, bank, layout, barriers, works[warp]);
  }
#endif
}

template <class T, int K, bool REGION>
cudaError_t start(const Scan& call, int blocks, cudaStream_t stream) {
  using P = Patch<REGION>;
  const bool brain = call.dtype == Dtype::bfloat16;
  const auto [height, width] = call.queries;
  const auto [key_height, key_width] = call.positions;
  chip::Boxes queries, bank;
  cudaError_t error = chip::make_boxes(queries, call.query, brain, {call.channels, width, height, call.targets},
                                       {call.query_n, call.query_n * width, call.query_b}, P::kWide, P::kTall);
  if (error != cudaSuccess) return error;
  error = chip::make_boxes(bank, call.bank, brain, {call.channels, key_width, key_height, call.bank_frames},
                           {call.bank_m, call.bank_m * key_width, call.bank_f}, P::kWide, P::kTall);
  if (error != cudaSuccess) return error;
  return chip::launch(scan_sm90<T, K, REGION>, blocks, kThreads, kShared, stream, queries, bank, call);
}

}  // namespace

cudaError_t topk_affinity_sm90(const Scan& call, int blocks, cudaStream_t stream) {
  if (call.lists != kLists) return cudaErrorInvalidValue;
  return with_instance(call, [&]<class T, int K, bool REGION>() { return start<T, K, REGION>(call, blocks, stream); });
}

}  // namespace timecycle
