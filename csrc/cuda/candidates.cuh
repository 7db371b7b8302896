// The buffer in shared memory from a multiplying warp to the warp that keeps the lists of its 32 rows.
#pragma once

#include "patches.cuh"

namespace timecycle {

// Two neighboring products, at least one of which may be among the k best.
struct alignas(8) CandidatePair {
  float value[2];
};

// The softmax of a list: each row's largest product, and its sum of exponentials relative to that.
struct ListSums {
  float top[32], sum[32];
};

// The candidates of 32 rows: the n-th of row r is at [n][r].
template <int CAPACITY>
struct CandidateBuffer {
  CandidatePair entry[CAPACITY][32];
  // The columns of each row's candidates: bit e of word q is the pair of the warp's columns 8 e + 2 q and 8 e + 2 q
  // + 1. A row's candidates are ordered by q, then e.
  alignas(8) uint16_t column_bits[32][4];
  float threshold[32];  // for each row: smaller products are not among the k best
  int more;             // whether more candidates of the same patch follow

  ON_DEVICE uint64_t columns_of(int row) const { return *reinterpret_cast<const uint64_t*>(column_bits[row]); }
  // kScratch bytes of working memory, which overwrite candidates that are no longer needed.
  static constexpr int kScratch = CAPACITY * 32 * int(sizeof(CandidatePair)) + 32 * 4 * 2;
  template <class T>
  ON_DEVICE T* scratch() {
    return reinterpret_cast<T*>(this);
  }
  ON_DEVICE ListSums& list_sums() { return *scratch<ListSums>(); }
};

// The grid position of a row of a warp, which may be outside the grid.
template <bool NEIGHBORHOOD, class WarpTile>
ON_DEVICE Patch<NEIGHBORHOOD> place_of(const WorkItem& item, int row) {
  using P = Patch<NEIGHBORHOOD>;
  const int place = WarpTile::first_row(row / 16) + row % 16;
  return {item.y + place / P::kWide, item.x + place % P::kWide};
}

// The index of a patch's first key.
template <bool NEIGHBORHOOD>
ON_DEVICE int index_of_first(const Problem& p, const WorkItem& item, Patch<NEIGHBORHOOD> keys) {
  return (item.slot * p.positions.height + keys.y) * p.positions.width + keys.x;
}

}  // namespace timecycle
