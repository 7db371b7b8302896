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

  static constexpr int kBatch = K > 10 ? 8 : 4;  // ranks merged at a time; a merge into a longer list costs more

  ON_DEVICE RowLists(const Scan& call, const Piece& piece) : call(call), piece(piece) {}

  ON_DEVICE void clear() {
    // A row beyond the grid keeps nothing.
    const P own = place_of<REGION, Share>(piece, chip::lane());
    list.clear(own.y < call.queries.height && own.x < call.queries.width ? call.k : 0);
  }

  // Takes hits of a patch whose first key has that index: all rows' at the same time, some of each.
  template <int ROOM>
  ON_DEVICE void take(const Hits<ROOM>& hits, int first) {
    const int lane = chip::lane();
    const float gate = hits.gate[lane];
    const uint64_t places = hits.places_of(lane);
    // The hits that are left: `here` those in columns 0 to 3 of each eighth, `later` those in columns 4 to 7.
    uint32_t here = uint32_t(places), later = uint32_t(places >> 32);
    int start = first, done = 0;
    Rank smaller = kNoRank;  // of the last hit, if `both` of its products belong here
    bool both = false;
    chip::note(chip::Event::flush);
    while (chip::any(here != 0 || later != 0 || both)) {
      Rank ranks[kBatch];
#pragma unroll
      for (int n = 0; n < kBatch; ++n) {
        const bool rest = here == 0;
        start += rest ? 4 : 0;
        here = rest ? later : here;
        later = rest ? 0 : later;
        const bool next = !both && here != 0;
        const int bit = chip::lowest(here), index = start + key(bit % 16, bit / 16 * 2);
        const Hit hit = hits.entry[min(done, ROOM - 1)][lane];
        const int second = hit.value[1] > hit.value[0];
        // A comparison with NaN is false.
        const float more = fmaxf(hit.value[0], hit.value[1]), less = fminf(hit.value[0], hit.value[1]);
        ranks[n] = next ? rank_of(more, index + second) : smaller;
        both = next && less >= gate;
        smaller = both ? rank_of(less, index + 1 - second) : kNoRank;
        here &= next ? here - 1 : here;
        done += next;
      }
      chip::note(chip::Event::insertion);
      list.take(ranks);
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

  // Writes the rows' candidates as list number `number` of each query. Their softmax is in the buffers of the warps
  // that had products of the rows, the first of which is written over.
  template <int ROOM, int WARPS>
  ON_DEVICE void store(Hits<ROOM>* const (&hits)[WARPS], int number) {
    const Extent grid = call.queries;
    const int lane = chip::lane();
    const int64_t lists = int64_t{call.lists} * call.parts * (call.joint ? 1 : call.slots);
    const int64_t first = (int64_t{piece.target} * lists + number) * grid.height * grid.width;
    const P own = place_of<REGION, Share>(piece, lane);
    if (call.softmax_over_all && own.y < grid.height && own.x < grid.width) {
      float top = -INFINITY, sum = 0;
#pragma unroll
      for (int i = 0; i < WARPS; ++i) top = fmaxf(top, hits[i]->list_sums().top[lane]);
#pragma unroll
      for (int i = 0; i < WARPS; ++i) {
        const ListSums& part = hits[i]->list_sums();
        if (part.sum[lane] != 0)
          sum += part.sum[lane] * chip::power_of_two((part.top[lane] - top) * call.softmax_scale_log2);
      }
      const int64_t at = first + int64_t{own.y} * grid.width + own.x;
      call.tops[at] = top;
      call.sums[at] = sum;
    }
    // By way of shared memory, so that what lies side by side is written together. The list's last entry is the last of
    // k.
    static_assert(int(sizeof(float)) * 32 * K <= Hits<ROOM>::kScratch);
    chip::sync_warp();
    write_out(call.values + first * call.k, hits[0]->template scratch<float>(), product_of);
    write_out(call.indices + first * call.k, hits[0]->template scratch<int>(), index_of);
  }

 private:
  // From the index of a patch's first key to that of one of the warp's.
  ON_DEVICE int key(int eighth, int column) const {
    if constexpr (!REGION) return Share::first_column() + 8 * eighth + column;
    return (Share::first_column() / P::kWide + eighth / 2) * call.positions.width + eighth % 2 * 8 + column;
  }

  // A number of each entry. The 16 rows of a block are neighbours on the grid.
  template <class T, class Number>
  ON_DEVICE void write_out(T* to, T* scratch, Number number) const {
#pragma unroll
    for (int e = 1; e <= K; ++e) {
      if (e <= call.k) scratch[(chip::lane() + 1) * call.k - e] = number(list.entry[K - e]);
    }
    chip::sync_warp();
#pragma unroll
    for (int block = 0; block < 2; ++block) {
      const P row = place_of<REGION, Share>(piece, 16 * block);
      const int rows = row.y < call.queries.height ? max(0, min(16, call.queries.width - row.x)) : 0;
      T* const start = to + (int64_t{row.y} * call.queries.width + row.x) * call.k;
#pragma unroll 1
      for (int i = chip::lane(); i < rows * call.k; i += 32) start[i] = scratch[16 * block * call.k + i];
    }
    chip::sync_warp();
  }
};

}  // namespace timecycle
