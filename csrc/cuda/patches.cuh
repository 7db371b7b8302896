// Patches of queries and keys, and which patches of keys a patch of queries is multiplied with: used by the threads
// that copy and by those that multiply. The geometry is that of kernels/grid.py.
#pragma once

#include "chip.h"
#include "topk_affinity.h"

namespace timecycle {

// A patch of positions: 128 in a row, or with a neighborhood 8 rows of 16, so that fewer keys are inside of it.
template <bool NEIGHBORHOOD>
struct Patch {
  static constexpr int kWide = NEIGHBORHOOD ? 16 : kPatch, kTall = kPatch / kWide;
  int y, x;  // of the first position
};

template <bool NEIGHBORHOOD>
ON_DEVICE int patches_of(Extent grid) {
  using P = Patch<NEIGHBORHOOD>;
  return (grid.width + P::kWide - 1) / P::kWide * ((grid.height + P::kTall - 1) / P::kTall);
}

// Patch number p of a grid, row by row.
template <bool NEIGHBORHOOD>
ON_DEVICE Patch<NEIGHBORHOOD> patch_of(Extent grid, int p) {
  const int across = (grid.width + Patch<NEIGHBORHOOD>::kWide - 1) / Patch<NEIGHBORHOOD>::kWide;
  return {p / across * Patch<NEIGHBORHOOD>::kTall, p % across * Patch<NEIGHBORHOOD>::kWide};
}

ON_DEVICE int chunks_of(const Problem& p) { return (p.channels + kChunk - 1) / kChunk; }

// The distance between two intervals of `size` rows (or columns) that begin at a and b: 0 if they overlap.
ON_DEVICE int gap(int a, int b, int size) { return max(0, max(a - (b + size - 1), b - (a + size - 1))); }

// The patches of keys of one slot that a patch of queries may see. In shared memory, and volatile so that the compiler
// does not keep the members in registers, which are scarce.
template <bool NEIGHBORHOOD>
struct SlotPatches {
  using P = Patch<NEIGHBORHOOD>;
  volatile int frame;
  volatile int inside, outside;  // multiplicity of keys inside and outside the neighborhood
  volatile int y, x, across, count, first;

  ON_DEVICE void set(const Problem& p, int target, int t, P queries) {
    const int64_t at = int64_t{target} * p.slots + t;
    frame = p.frames[at] < p.bank_frames ? int(p.frames[at]) : -1;
    inside = int(p.multiplicity[2 * at]);
    outside = NEIGHBORHOOD ? int(p.multiplicity[2 * at + 1]) : 0;
    int end_y = p.positions.height, end_x = p.positions.width;
    y = 0;
    x = 0;
    if (NEIGHBORHOOD && outside == 0) {
      y = max(0, queries.y - (p.rows - 1));
      end_y = min(end_y, queries.y + P::kTall + p.rows - 1);
      x = max(0, queries.x - p.columns);
      end_x = min(end_x, queries.x + P::kWide + p.columns);
    }
    across = (end_x - x + P::kWide - 1) / P::kWide;
    count = frame < 0 ? 0 : across * ((end_y - y + P::kTall - 1) / P::kTall);
    const int own = (queries.y - y) / P::kTall * across + (queries.x - x) / P::kWide;
    first = min(max(0, own - 1), max(0, count - 1));
  }

  // In cyclic order, starting one patch before the queries' own position: nearby features are similar, so that later
  // keys are seldom among the k best.
  ON_DEVICE P patch(int i) const {
    const int at = first + i < count ? first + i : first + i - count;
    if (!NEIGHBORHOOD) return {0, at * P::kWide};
    return {y + at / across * P::kTall, x + at % across * P::kWide};
  }

  // Whether any key of a patch counts.
  ON_DEVICE bool wanted(const Problem& p, P queries, P keys) const {
    if (!NEIGHBORHOOD) return inside > 0;
    const int dy = gap(queries.y, keys.y, P::kTall), dx = gap(queries.x, keys.x, P::kWide);
    const bool near = dy < p.rows && dx <= p.columns && dy * dy + dx * dx <= p.limit;
    return outside > 0 || (inside > 0 && near);
  }
};

// Some patches of keys of one slot, for one patch of queries.
struct WorkItem {
  volatile int target, slot;
  volatile int queries, y, x;  // the number of the patch, and its first row and column
  volatile int first, last;    // wanted patches first .. last - 1 of keys, in the order of SlotPatches
  volatile int list;           // the first of the lists that the block makes of these queries
  volatile bool begins;        // whether the queries differ from the last item's
  volatile bool ends;          // whether the list is complete
  volatile uint8_t part;       // the number of this block among those that have keys of the list
};

// Calls start<T, K, NEIGHBORHOOD>() with the type, list size (at least k) and kind of patch of a call.
template <class Start>
cudaError_t with_instance(const Problem& p, Start start) {
  const auto sized = [&]<class T, bool NEIGHBORHOOD>() {
    if (p.k <= 5) return start.template operator()<T, 5, NEIGHBORHOOD>();
    if (p.k <= 10) return start.template operator()<T, 10, NEIGHBORHOOD>();
    return start.template operator()<T, kLargestK, NEIGHBORHOOD>();
  };
  const auto placed = [&]<class T>() {
    return p.neighborhood ? sized.template operator()<T, true>() : sized.template operator()<T, false>();
  };
  return p.dtype == Dtype::bfloat16 ? placed.template operator()<chip::bfloat16>()
                                    : placed.template operator()<chip::float16>();
}

}  // namespace timecycle
