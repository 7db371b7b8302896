// What a warp makes of its products while they are in registers: softmax sums and the k best keys of 32 rows.
//
// A warp has 32 rows of `COLUMNS` products: two blocks of 16 rows, laid out as the tensor cores leave them, so that a
// row is with the four lanes of a quad. Row r is 0 to 15 for the first block, 16 to 31 for the second; lane r keeps its
// list. All of it stays inside the warp.
#pragma once

#include <cfloat>
#include <climits>
#include <cmath>

#include "patches.cuh"

namespace timecycle {

constexpr int kNobody = INT_MAX;  // above every index

// The k best keys of a row, best first: larger product, or equal with the lower index. Of K entries the first K - k
// are out of the way, above everything.
template <int K>
struct List {
  float value[K];
  int index[K];

  ON_DEVICE void clear(int k) {
#pragma unroll
    for (int e = 0; e < K; ++e) {
      value[e] = e < K - k ? INFINITY : -INFINITY;
      index[e] = e < K - k ? -1 : kNobody;
    }
  }

  ON_DEVICE void insert(float v, int i) {
#pragma unroll
    for (int e = 0; e < K; ++e) {
      const bool ahead = v > value[e] || (v == value[e] && i < index[e]);
      const float down = ahead ? value[e] : v;
      const int down_index = ahead ? index[e] : i;
      value[e] = ahead ? v : value[e];
      index[e] = ahead ? i : index[e];
      v = down;
      i = down_index;
    }
  }

  ON_DEVICE float worst() const { return value[K - 1]; }
};

struct Hit {
  float value;
  int column;
};

// Where the lanes of a quad leave what may belong into their row's list: ROOM entries a row and lane.
template <int ROOM>
struct Hits {
  Hit entry[ROOM][32 * 4];
};

// The smallest number above x; x is finite.
ON_DEVICE float above(float x) {
  const int32_t bits = chip::bits_of(x == 0 ? 0 : x);  // -0 to 0
  return chip::number_of(bits + (bits >= 0 ? 1 : -1));
}

// The state of a warp, and what it does with a tile.
template <int K, int COLUMNS, int ROOM, bool REGION>
struct RowLists {
  using P = Patch<REGION>;
  static constexpr int kEighths = COLUMNS / 8;  // a lane has two columns of each

  const Scan& call;
  Hits<ROOM>& hits;
  const P queries;
  const int rows[2];       // places in `queries` of the warp's rows 0 and 16
  const int first_column;  // in a patch of keys
  List<K> list;            // of row lane()
  float top[4], total[4];  // of the four rows that this lane has columns of, in order of its registers: row_of(i)

  ON_DEVICE RowLists(const Scan& call, Hits<ROOM>& hits, P queries, int first_row, int second_row, int first_column)
      : call(call), hits(hits), queries(queries), rows{first_row, second_row}, first_column(first_column) {
    clear();
  }

  ON_DEVICE void clear() {
    // A row beyond the grid, whose products are all 0, keeps nothing and has no hits.
    const P own = place_of(chip::lane());
    list.clear(own.y < call.queries.height && own.x < call.queries.width ? call.kept : 0);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      top[i] = -INFINITY;
      total[i] = 0;
    }
  }

  // Products of the rows with one patch of keys: sums[block][4 * eighth + ...]. Overwrites them.
  ON_DEVICE void take(float (&sums)[2][COLUMNS / 2], const Slot<REGION>& slot, int t, P keys) {
    uint32_t inside[4];
    hide(sums, slot, keys, inside);
    if (call.every) {
      if (REGION && slot.beyond > 0 && slot.beyond != slot.within) {
        add_up<true>(sums, slot, inside);
      } else {
        add_up<false>(sums, slot, inside);
      }
    }
    // Keys that come later have higher indices, so that an equal one is no better; with a region they come in patches.
    bool ties = REGION;
    // Where a list is not full nearly every product would be a hit.
    const float least = chip::any(list.worst() == -INFINITY) ? bound(sums) : -INFINITY;
    while (chip::any(leave_hits(sums, ties, least))) {
      collect(t, keys);
      ties = true;  // what the first round had no room for may have lower indices
    }
    collect(t, keys);
  }

  // Writes the rows' candidates of the list number `split`, which share one target.
  ON_DEVICE void store(int64_t target, int64_t splits, int64_t split) {
    const Extent grid = call.queries;
    const int64_t first = (target * splits + split) * grid.height * grid.width;
    const int lane = chip::lane();
    const P own = place_of(lane);
    if (own.y < grid.height && own.x < grid.width) {
      // The list's last entry is the last of k.
      const int64_t end = (first + int64_t{own.y} * grid.width + own.x + 1) * call.kept;
#pragma unroll
      for (int e = 1; e <= K; ++e) {
        if (e > call.kept) break;
        call.values[end - e] = list.value[K - e];
        call.indices[end - e] = list.index[K - e];
      }
    }
    if (!call.every) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float most = top[i];
      for (int step = 1; step < 4; step *= 2) most = fmaxf(most, chip::from_lane_xor(most, step));
      float sum = top[i] == -INFINITY ? 0 : total[i] * chip::power_of_two((top[i] - most) * call.scale);
      for (int step = 1; step < 4; step *= 2) sum += chip::from_lane_xor(sum, step);
      const P row = place_of(row_of(i, lane));
      if (lane % 4 == 0 && row.y < grid.height && row.x < grid.width) {
        const int64_t at = first + int64_t{row.y} * grid.width + row.x;
        call.tops[at] = most;
        call.sums[at] = sum;
      }
    }
  }

 private:
  ON_DEVICE static int row_of(int i, int lane) { return 8 * i + lane / 4; }

  // Where a row of the warp is on the grid, or beyond its edge.
  ON_DEVICE P place_of(int row) const {
    const int place = (row < 16 ? rows[0] : rows[1]) + row % 16;
    return {queries.y + place / P::kWide, queries.x + place % P::kWide};
  }

  // The column, in a patch of keys, of a lane's e-th product (0 or 1) of an eighth.
  ON_DEVICE int column(int eighth, int e, int lane) const { return first_column + 8 * eighth + 2 * (lane % 4) + e; }

  // Products of keys that do not count become -inf. A row's bit 2 * eighth + e of `inside` is whether that key is.
  ON_DEVICE void hide(float (&sums)[2][COLUMNS / 2], const Slot<REGION>& slot, P keys, uint32_t (&inside)[4]) {
    const Extent grid = call.positions;
    if (!REGION && keys.x + kPatch <= grid.width) return;
    const int lane = chip::lane();
    if constexpr (REGION) {
      uint32_t exists = 0;
      constexpr int kRows = COLUMNS / P::kWide;  // of keys: two eighths each
      const int x = keys.x + column(0, 0, lane) % P::kWide, y = keys.y + first_column / P::kWide;
      const int columns = call.columns * call.columns;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        inside[i] = 0;
        const P query = place_of(row_of(i, lane));
        const int dx = x - query.x;
#pragma unroll 1
        for (int row = 0; row < kRows; ++row) {
          const int dy = abs(y + row - query.y);
          const int allowed = dy < call.rows ? min(columns, call.limit - dy * dy) : -1;
          uint32_t near = 0;
#pragma unroll
          for (int bit = 0; bit < 4; ++bit) {
            const int apart = dx + bit / 2 * 8 + bit % 2;
            near |= uint32_t{apart * apart <= allowed} << bit;
          }
          inside[i] |= near << (4 * row);
        }
      }
#pragma unroll 1
      for (int row = 0; row < kRows; ++row) {
#pragma unroll
        for (int bit = 0; bit < 4; ++bit) {
          const bool there = y + row < grid.height && x + bit / 2 * 8 + bit % 2 < grid.width;
          exists |= uint32_t{there} << (4 * row + bit);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t counts = ((slot.within ? inside[i] : 0) | (slot.beyond ? ~inside[i] : 0)) & exists;
#pragma unroll
        for (int j = 0; j < kEighths; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            if (!(counts >> (2 * j + e) & 1)) sums[i / 2][4 * j + i % 2 * 2 + e] = -INFINITY;
          }
        }
      }
    } else {
      const int left = grid.width - keys.x - column(0, 0, lane);
#pragma unroll
      for (int j = 0; j < kEighths; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (8 * j + e < left) continue;
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[i / 2][4 * j + i % 2 * 2 + e] = -INFINITY;
        }
      }
    }
  }

  // The softmax. With MIXED keys inside and outside the region count differently.
  template <bool MIXED>
  ON_DEVICE void add_up(const float (&sums)[2][COLUMNS / 2], const Slot<REGION>& slot, const uint32_t (&inside)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float most = top[i];
#pragma unroll
      for (int j = 0; j < kEighths; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) most = fmaxf(most, sums[i / 2][4 * j + i % 2 * 2 + e]);
      }
      const float shift = most == -INFINITY ? 0 : most;
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kEighths; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          // Not one multiplication and addition: of large logits it would lose the difference.
          float part = chip::power_of_two((sums[i / 2][4 * j + i % 2 * 2 + e] - shift) * call.scale);
          if (MIXED) part *= inside[i] >> (2 * j + e) & 1 ? slot.within : slot.beyond;
          sum += part;
        }
      }
      if (!MIXED) sum *= slot.within;
      total[i] = total[i] * chip::power_of_two((top[i] - shift) * call.scale) + sum;
      top[i] = most;
    }
  }

  // No product below this, of row lane(), is among the k best: it is the k-th of the largest products of some groups of
  // columns, of which there are more than k; -inf if not so many exist.
  ON_DEVICE float bound(const float (&sums)[2][COLUMNS / 2]) {
    constexpr int kGroups = K <= 5 ? 2 : K <= 10 ? 4 : 8, kColumns = COLUMNS / 4 / kGroups;  // of a lane and row
    static_assert(4 * kGroups > K && kColumns % 2 == 0 && sizeof(float) * kGroups <= sizeof(Hit) * ROOM);
    float* const largest = &hits.entry[0][0].value;
    const int lane = chip::lane();
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float most = -INFINITY;
#pragma unroll
        for (int c = g * kColumns; c < (g + 1) * kColumns; ++c) {
          most = fmaxf(most, sums[i / 2][c / 2 * 4 + i % 2 * 2 + c % 2]);
        }
        largest[128 * g + 4 * row_of(i, lane) + lane % 4] = most;
      }
    }
    chip::sync_warp();
    float best[K];
#pragma unroll
    for (int e = 0; e < K; ++e) best[e] = e < K - call.kept ? INFINITY : -INFINITY;
#pragma unroll 1
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        float value = largest[128 * g + 4 * lane + q];
#pragma unroll
        for (int e = 0; e < K; ++e) {
          const float more = fmaxf(best[e], value);
          value = fminf(best[e], value);
          best[e] = more;
        }
      }
    }
    chip::sync_warp();
    return best[K - 1];
  }

  // Leaves every product that may belong into its row's list where the row's lane finds it, as far as there is room,
  // and forgets it; none that is smaller than `least` may. Returns whether some are left.
  ON_DEVICE bool leave_hits(float (&sums)[2][COLUMNS / 2], bool ties, float least) {
    const float worst = list.worst();
    // What does not exist is -inf, and never a hit.
    const float lowest = fmaxf(least, worst == -INFINITY ? -FLT_MAX : ties || worst == INFINITY ? worst : above(worst));
    const int lane = chip::lane();
    float gate[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) gate[i] = chip::from_lane(lowest, row_of(i, lane));
    filled = 0;
    bool left = false;
#pragma unroll
    for (int j = 0; j < kEighths; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& product = sums[i / 2][4 * j + i % 2 * 2 + e];
          if (!(product >= gate[i])) continue;  // NaN is no hit
          const int n = filled >> (8 * i) & 255;
          if (n == ROOM) {
            left = true;
            continue;
          }
          hits.entry[n][4 * row_of(i, lane) + lane % 4] = {product, column(j, e, lane)};
          filled += 1u << (8 * i);
          product = -INFINITY;
        }
      }
    }
    return left;
  }

  // Takes what was left for this lane's row into its list.
  ON_DEVICE void collect(int t, P keys) {
    const int lane = chip::lane();
    const Extent grid = call.positions;
    uint32_t counts = 0;  // one byte for each lane of the row's quad
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const uint32_t theirs = chip::from_lane(filled, lane % 8 * 4 + q);
      counts |= (theirs >> (lane / 8 * 8) & 255) << (8 * q);
    }
    chip::sync_warp();
    while (chip::any(counts != 0)) {
      float value = -INFINITY;
      int index = kNobody;
      if (counts != 0) {
        const int q = (chip::find_first(counts) - 1) / 8;
        counts -= 1u << (8 * q);
        const Hit hit = hits.entry[counts >> (8 * q) & 255][4 * lane + q];
        value = hit.value;
        const int at = REGION ? (keys.y + hit.column / P::kWide) * grid.width + keys.x + hit.column % P::kWide
                              : keys.x + hit.column;
        index = t * (grid.height * grid.width) + at;
      }
      list.insert(value, index);
    }
    chip::sync_warp();
  }

  uint32_t filled;  // hits this lane left in the last round: one byte for each of its rows
};

}  // namespace timecycle
