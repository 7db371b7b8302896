// The k best keys of 32 rows, each kept by one lane of a warp.
#pragma once

#include <cfloat>
#include <cmath>

#include "candidates.cuh"
#include "key_list.cuh"

namespace timecycle {

// The smallest float above x, which is not NaN; for an infinity the next bit pattern.
ON_DEVICE float above(float x) {
  const int32_t bits = chip::bits_of(x == 0 ? 0 : x);  // -0 to 0
  return chip::number_of(bits + (bits >= 0 ? 1 : -1));
}

// WarpTile as in RowCandidates.
template <int K, bool NEIGHBORHOOD, class WarpTile>
struct RowLists {
  using P = Patch<NEIGHBORHOOD>;

  const Problem& p;
  const WorkItem& item;  // the one in progress
  List<K> list;          // of row lane()

  static constexpr int kBatch = K > 10 ? 8 : 4;  // ranks merged at a time; a merge into a longer list costs more

  ON_DEVICE RowLists(const Problem& p, const WorkItem& item) : p(p), item(item) {}

  ON_DEVICE void clear() {
    // A row outside the grid keeps nothing.
    const P own = place_of<NEIGHBORHOOD, WarpTile>(item, chip::lane());
    list.clear(own.y < p.queries.height && own.x < p.queries.width ? p.k : 0);
  }

  // Inserts the candidates of a patch whose first key has index `first`: a few per iteration, of all rows in parallel.
  template <int CAPACITY>
  ON_DEVICE void take(const CandidateBuffer<CAPACITY>& buffer, int first) {
    const int lane = chip::lane();
    const float threshold = buffer.threshold[lane];
    const uint64_t columns = buffer.columns_of(lane);
    // The remaining candidates: `here` those in columns 0 to 3 of each eighth, `later` those in columns 4 to 7.
    uint32_t here = uint32_t(columns), later = uint32_t(columns >> 32);
    int start = first, done = 0;
    Rank smaller = kWorstRank;  // rank of the smaller product of the last pair, if `both` reach the threshold
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
        const CandidatePair pair = buffer.entry[min(done, CAPACITY - 1)][lane];
        const int second = pair.value[1] > pair.value[0];
        // A comparison with NaN is false.
        const float more = fmaxf(pair.value[0], pair.value[1]), less = fminf(pair.value[0], pair.value[1]);
        ranks[n] = next ? rank_of(more, index + second) : smaller;
        both = next && less >= threshold;
        smaller = both ? rank_of(less, index + 1 - second) : kWorstRank;
        here &= next ? here - 1 : here;
        done += next;
      }
      chip::note(chip::Event::insertion);
      list.take(ranks);
    }
  }

  // The smallest product that belongs in the list of row lane(), if the next patch is number i of the slot's wanted
  // ones: a product equal to the last entry's is better only if its index is lower. It is above -inf, the product of
  // keys that do not count.
  ON_DEVICE float threshold(const SlotPatches<NEIGHBORHOOD>& slot, int i) const {
    const Rank worst = list.entry[K - 1];
    if (worst == kPaddingRank) return INFINITY;
    const float product = product_of(worst);
    if constexpr (!NEIGHBORHOOD) {
      // Patches come by ascending index, except that the order wraps around once.
      const int next = i < item.last ? index_of_first(p, item, slot.patch(i)) : kInvalidIndex;
      if (index_of(worst) < next) return fmaxf(above(product), -FLT_MAX);
    }
    return fmaxf(product, -FLT_MAX);
  }

  // Writes the rows' lists as list number `number` of each query. Their softmax is in the buffers of the warps that had
  // products of the rows; the first buffer is overwritten.
  template <int CAPACITY, int WARPS>
  ON_DEVICE void store(CandidateBuffer<CAPACITY>* const (&buffer)[WARPS], int number) {
    const Extent grid = p.queries;
    const int lane = chip::lane();
    const int64_t lists = int64_t{p.lists} * p.parts * (p.joint ? 1 : p.slots);
    const int64_t first = (int64_t{item.target} * lists + number) * grid.height * grid.width;
    const P own = place_of<NEIGHBORHOOD, WarpTile>(item, lane);
    if (p.softmax_over_all && own.y < grid.height && own.x < grid.width) {
      float top = -INFINITY, sum = 0;
#pragma unroll
      for (int i = 0; i < WARPS; ++i) top = fmaxf(top, buffer[i]->list_sums().top[lane]);
#pragma unroll
      for (int i = 0; i < WARPS; ++i) {
        const ListSums& part = buffer[i]->list_sums();
        if (part.sum[lane] != 0)
          sum += part.sum[lane] * chip::power_of_two((part.top[lane] - top) * p.softmax_scale_log2);
      }
      const int64_t at = first + int64_t{own.y} * grid.width + own.x;
      p.tops[at] = top;
      p.sums[at] = sum;
    }
    // Through shared memory, so that writes are coalesced.
    static_assert(int(sizeof(float)) * 32 * K <= CandidateBuffer<CAPACITY>::kScratch);
    chip::sync_warp();
    write_out(p.values + first * p.k, buffer[0]->template scratch<float>(), product_of);
    write_out(p.indices + first * p.k, buffer[0]->template scratch<int>(), index_of);
  }

 private:
  // The index of one of the warp's keys relative to the patch's first key.
  ON_DEVICE int key(int eighth, int column) const {
    if constexpr (!NEIGHBORHOOD) return WarpTile::first_column() + 8 * eighth + column;
    return (WarpTile::first_column() / P::kWide + eighth / 2) * p.positions.width + eighth % 2 * 8 + column;
  }

  // Writes number(entry) of the last k entries. The 16 rows of a block are adjacent on the grid.
  template <class T, class Number>
  ON_DEVICE void write_out(T* to, T* scratch, Number number) const {
#pragma unroll
    for (int e = 1; e <= K; ++e) {
      if (e <= p.k) scratch[(chip::lane() + 1) * p.k - e] = number(list.entry[K - e]);
    }
    chip::sync_warp();
#pragma unroll
    for (int block = 0; block < 2; ++block) {
      const P row = place_of<NEIGHBORHOOD, WarpTile>(item, 16 * block);
      const int rows = row.y < p.queries.height ? max(0, min(16, p.queries.width - row.x)) : 0;
      T* const start = to + (int64_t{row.y} * p.queries.width + row.x) * p.k;
#pragma unroll 1
      for (int i = chip::lane(); i < rows * p.k; i += 32) start[i] = scratch[16 * block * p.k + i];
    }
    chip::sync_warp();
  }
};

}  // namespace timecycle
