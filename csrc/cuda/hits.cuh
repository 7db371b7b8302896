// What a warp that multiplies leaves in shared memory for who keeps the lists of its 32 rows.
#pragma once

#include "patches.cuh"

namespace timecycle {

// Two neighbouring products of which one may belong into a list.
struct alignas(8) Hit {
  float value[2];
};

// The softmax of a list: of each row its largest product, and the sum relative to it.
struct ListSums {
  float top[32], sum[32];
};

// Hits of 32 rows: the n-th of row r is at [n][r].
template <int ROOM>
struct Hits {
  Hit entry[ROOM][32];
  // Where they are among the row's products: bit e of number q is of columns 8 e + 2 q and the one after it, of those
  // that the warp has. A row's hits are in the order of q, then of e.
  alignas(8) uint16_t places[32][4];
  float gate[32];  // of each row: smaller products are not among the k best
  int more;        // whether the patch has hits for which there was no room

  ON_DEVICE uint64_t places_of(int row) const { return *reinterpret_cast<const uint64_t*>(places[row]); }
  // In the place of hits that are not needed any more: kScratch bytes.
  static constexpr int kScratch = ROOM * 32 * int(sizeof(Hit)) + 32 * 4 * 2;
  template <class T>
  ON_DEVICE T* scratch() {
    return reinterpret_cast<T*>(this);
  }
  ON_DEVICE ListSums& list_sums() { return *scratch<ListSums>(); }
};

// Where a row of a warp is on the grid, or beyond its edge.
template <bool REGION, class Share>
ON_DEVICE Patch<REGION> place_of(const Piece& piece, int row) {
  using P = Patch<REGION>;
  const int place = Share::first_row(row / 16) + row % 16;
  return {piece.y + place / P::kWide, piece.x + place % P::kWide};
}

// The index of a patch's first key.
template <bool REGION>
ON_DEVICE int index_of_first(const Scan& call, const Piece& piece, Patch<REGION> keys) {
  return (piece.slot * call.positions.height + keys.y) * call.positions.width + keys.x;
}

}  // namespace timecycle
