// Which keys meet which queries: what copies and multiplies must agree on. The same geometry as kernels/grid.py.
#pragma once

#include "chip.h"
#include "topk_affinity.h"

namespace timecycle {

// A patch of positions is 8 rows of 16 with a neighborhood, so that the keys it may see are few, else a row of 128.
template <bool REGION>
struct Patch {
  static constexpr int kWide = REGION ? 16 : kPatch, kTall = kPatch / kWide;
  int y, x;  // of the first position
};

template <bool REGION>
ON_DEVICE int patches_of(Extent grid) {
  using P = Patch<REGION>;
  return (grid.width + P::kWide - 1) / P::kWide * ((grid.height + P::kTall - 1) / P::kTall);
}

// Patch number p of a grid, row by row.
template <bool REGION>
ON_DEVICE Patch<REGION> patch_of(Extent grid, int p) {
  const int across = (grid.width + Patch<REGION>::kWide - 1) / Patch<REGION>::kWide;
  return {p / across * Patch<REGION>::kTall, p % across * Patch<REGION>::kWide};
}

ON_DEVICE int chunks_of(const Scan& call) { return (call.channels + kChunk - 1) / kChunk; }

// Rows (or columns) between two stretches of `size` that begin at a and b, 0 where they overlap.
ON_DEVICE int apart(int a, int b, int size) { return max(0, max(a - (b + size - 1), b - (a + size - 1))); }

// The patches of keys of one slot that a patch of queries may see. In shared memory, as registers are few: what is
// volatile is read when it is needed, and not kept.
template <bool REGION>
struct Slot {
  using P = Patch<REGION>;
  volatile int frame;
  volatile int within, beyond;  // how often keys count
  volatile int y, x, across, count, first;

  ON_DEVICE void set(const Scan& call, int target, int t, P queries) {
    const int64_t at = int64_t{target} * call.slots + t;
    frame = call.frames[at] < call.bank_frames ? int(call.frames[at]) : -1;
    within = int(call.multiplicity[2 * at]);
    beyond = REGION ? int(call.multiplicity[2 * at + 1]) : 0;
    int end_y = call.positions.height, end_x = call.positions.width;
    y = 0;
    x = 0;
    if (REGION && beyond == 0) {
      y = max(0, queries.y - (call.rows - 1));
      end_y = min(end_y, queries.y + P::kTall + call.rows - 1);
      x = max(0, queries.x - call.columns);
      end_x = min(end_x, queries.x + P::kWide + call.columns);
    }
    across = (end_x - x + P::kWide - 1) / P::kWide;
    count = frame < 0 ? 0 : across * ((end_y - y + P::kTall - 1) / P::kTall);
    const int own = (queries.y - y) / P::kTall * across + (queries.x - x) / P::kWide;
    first = min(max(0, own - 1), max(0, count - 1));
  }

  // In order, from the one before the queries' own place on: what is near is alike, so that later keys seldom belong
  // into a list.
  ON_DEVICE P patch(int i) const {
    const int at = first + i < count ? first + i : first + i - count;
    if (!REGION) return {0, at * P::kWide};
    return {y + at / across * P::kTall, x + at % across * P::kWide};
  }

  // Whether any key of a patch counts.
  ON_DEVICE bool wanted(const Scan& call, P queries, P keys) const {
    if (!REGION) return within > 0;
    const int dy = apart(queries.y, keys.y, P::kTall), dx = apart(queries.x, keys.x, P::kWide);
    const bool near = dy < call.rows && dx <= call.columns && dy * dy + dx * dx <= call.limit;
    return beyond > 0 || (within > 0 && near);
  }
};

// Some patches of keys of one slot, for one patch of queries.
struct Piece {
  volatile int target, slot;
  volatile int queries, y, x;  // the patch's number, and its first row and column
  volatile int first, last;    // patches first to last - 1, counted as Slot goes through those that are wanted
  volatile int list;           // the first of the two that the block makes of these queries
  volatile bool begins;        // whether the queries are others than the last piece's
  volatile bool ends;          // whether the list is complete
  volatile uint8_t part;       // which block it is of those that have keys of the list
};

// Calls start<T, K, REGION>() for the type, the list size (at least k) and the kind of patch that a call needs.
template <class Start>
cudaError_t with_instance(const Scan& call, Start start) {
  const auto sized = [&]<class T, bool REGION>() {
    if (call.k <= 5) return start.template operator()<T, 5, REGION>();
    if (call.k <= 10) return start.template operator()<T, 10, REGION>();
    return start.template operator()<T, kLargestKept, REGION>();
  };
  const auto placed = [&]<class T>() {
    return call.neighborhood ? sized.template operator()<T, true>() : sized.template operator()<T, false>();
  };
  return call.dtype == Dtype::bfloat16 ? placed.template operator()<chip::bfloat16>()
                                       : placed.template operator()<chip::float16>();
}

}  // namespace timecycle
