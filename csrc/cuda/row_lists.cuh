// The k best keys of 32 rows, each kept by one lane of a warp.
#pragma once

#include <cfloat>
#include <cmath>

#include "hits.cuh"
#include "key_list.cuh"

namespace timecycle {

// The smallest number above x, which is not NaN; infinities are as they come.
ON_DEVICE float above(float x) {
  const int32_t bits = chip::bits_of(x == 0 ? 0 : x);  // -0 to 0
  return chip::number_of(bits + (bits >= 0 ? 1 : -1));
}

// Share as in RowHits, of which only the rows matter here.
template <int K, bool REGION, class Share>
struct RowLists {
  using P = Patch<REGION>;

  const Scan& call;
  const Piece& piece;  // what the warp is at
  List<K> list;        // of row lane()

  static constexpr int kBatch = 4;  // hits

  ON_DEVICE RowLists(const Scan& call, const Piece& piece) : call(call), piece(piece) {}

  ON_DEVICE void clear() {
    // A row beyond the grid keeps nothing.
    const P own = place_of<REGION, Share>(piece, chip::lane());
    list.clear(own.y < call.queries.height && own.x < call.queries.width ? call.kept : 0);
  }

  // Takes hits of a patch whose first key has that index: all rows' at the same time, a few of each at a time.
  template <int ROOM>
  ON_DEVICE void take(const Hits<ROOM>& hits, int first) {
    uint64_t places = hits.places_of(chip::lane());
    const int rounds = int(chip::most(uint32_t(chip::count(places))));
    chip::note(chip::Event::flush);
#pragma unroll 1
    for (int done = 0; done < rounds; done += kBatch) {
      const uint64_t same = places;
      const float other = take_some<false>(hits, first, done, places);
      chip::note(chip::Event::insertion);
      if (chip::any(other >= product_of(list.entry[K - 1]))) {
        chip::note(chip::Event::second_insertion);
        uint64_t again = same;
        take_some<true>(hits, first, done, again);
      }
    }
  }

  // What a product of row lane() must reach to belong into its list, if patch number i of the slot is the next to come,
  // of those that are wanted: an equal one is better only if its index is lower. What does not exist is -inf, and never
  // reaches it.
  ON_DEVICE float gate(const Slot<REGION>& slot, int i) const {
    const Rank worst = list.entry[K - 1];
    if (worst == kOutOfTheWay) return INFINITY;
    const float product = product_of(worst);
    if constexpr (!REGION) {
      // Patches come in the order of their indices, but for one step back.
      const int next = i < piece.last ? index_of_first(call, piece, slot.patch(i)) : kNobody;
      if (index_of(worst) < next) return fmaxf(above(product), -FLT_MAX);
    }
    return fmaxf(product, -FLT_MAX);
  }

  // Writes the rows' candidates as list number `number` of each query. Their softmax is in the buffers of the warps that
  // had products of the rows, the first of which is written over.
  template <int ROOM, int WARPS>
  ON_DEVICE void store(Hits<ROOM>* const (&hits)[WARPS], int number) {
    const Extent grid = call.queries;
    const int lane = chip::lane();
    const int64_t lists = int64_t{call.lists} * call.parts * (call.joint ? 1 : call.slots);
    const int64_t first = (int64_t{piece.target} * lists + number) * grid.height * grid.width;
    const P own = place_of<REGION, Share>(piece, lane);
    if (call.every && own.y < grid.height && own.x < grid.width) {
      float top = -INFINITY, sum = 0;
#pragma unroll
      for (int i = 0; i < WARPS; ++i) top = fmaxf(top, hits[i]->list_sums().top[lane]);
#pragma unroll
      for (int i = 0; i < WARPS; ++i) {
        const ListSums& part = hits[i]->list_sums();
        if (part.sum[lane] != 0) sum += part.sum[lane] * chip::power_of_two((part.top[lane] - top) * call.scale);
      }
      const int64_t at = first + int64_t{own.y} * grid.width + own.x;
      call.tops[at] = top;
      call.sums[at] = sum;
    }
    // By way of shared memory, so that what lies side by side is written together. The list's last entry is the last of
    // k.
    static_assert(int(sizeof(float)) * 32 * K <= Hits<ROOM>::kScratch);
    chip::sync_warp();
    write_out(call.values + first * call.kept, hits[0]->template scratch<float>(), product_of);
    write_out(call.indices + first * call.kept, hits[0]->template scratch<int>(), index_of);
  }

 private:
  // Takes the larger product of each hit from number `done` on, or with SMALLER the smaller one; the largest of those
  // not taken. `places` are those of hits that are left.
  template <bool SMALLER, int ROOM>
  ON_DEVICE float take_some(const Hits<ROOM>& hits, int first, int done, uint64_t& places) {
    Rank ranks[kBatch];
    float other = -INFINITY;
#pragma unroll
    for (int n = 0; n < kBatch; ++n) {
      const bool there = places != 0;
      const int bit = chip::lowest(places), eighth = bit % 16, quarter = bit / 16;
      places &= places - 1;
      const Hit hit = hits.entry[min(done + n, ROOM - 1)][chip::lane()];
      // A comparison with NaN is false.
      const float most = fmaxf(hit.value[0], hit.value[1]), least = fminf(hit.value[0], hit.value[1]);
      const float value = SMALLER ? least : most;
      other = there ? fmaxf(other, SMALLER ? most : least) : other;
      const int second = (hit.value[1] > hit.value[0]) != SMALLER;
      ranks[n] = there && value > -INFINITY ? rank_of(value, first + key(eighth, 2 * quarter) + second) : kNoRank;
    }
    list.take(ranks);
    return other;
  }

  // From the first key of a patch to one of the warp's.
  ON_DEVICE int key(int eighth, int column) const {
    if constexpr (!REGION) return Share::first_column() + 8 * eighth + column;
    return (Share::first_column() / P::kWide + eighth / 2) * call.positions.width + eighth % 2 * 8 + column;
  }

  // A number of each entry. The 16 rows of a block are neighbours on the grid.
  template <class T, class Number>
  ON_DEVICE void write_out(T* to, T* scratch, Number number) const {
#pragma unroll
    for (int e = 1; e <= K; ++e) {
      if (e <= call.kept) scratch[(chip::lane() + 1) * call.kept - e] = number(list.entry[K - e]);
    }
    chip::sync_warp();
#pragma unroll
    for (int block = 0; block < 2; ++block) {
      const P row = place_of<REGION, Share>(piece, 16 * block);
      const int rows = row.y < call.queries.height ? max(0, min(16, call.queries.width - row.x)) : 0;
      T* const start = to + (int64_t{row.y} * call.queries.width + row.x) * call.kept;
#pragma unroll 1
      for (int i = chip::lane(); i < rows * call.kept; i += 32) start[i] = scratch[16 * block * call.kept + i];
    }
    chip::sync_warp();
  }
};

}  // namespace timecycle
