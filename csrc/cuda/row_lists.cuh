// What a warp makes of its products while they are in registers: softmax sums and the k best keys of 32 rows.
//
// A warp has 32 rows of `COLUMNS` products: two blocks of 16 rows, laid out as the tensor cores leave them, so that a
// row is with the four lanes of a quad. Row r is 0 to 15 for the first block, 16 to 31 for the second; lane r keeps its
// list. All of it stays inside the warp.
//
// Products that may belong into a list (hits) are appended to a buffer in shared memory, without a branch, and taken
// into the lists when the buffer of some row has no room for more: the lanes insert at the same time, so that a few
// long rounds cost less than many short ones.
#pragma once

#include <cfloat>
#include <cmath>

#include "key_list.cuh"
#include "patches.cuh"

namespace timecycle {

// Neighbouring products of which one may belong into a list.
struct alignas(16) Hit {
  float value[2];
  int index;  // of the first
};

// Hits of 32 rows that are not in the lists yet: the n-th of row r is at [n][r].
template <int ROOM>
struct Hits {
  Hit entry[ROOM][32];
  // Of each row: smaller products are not among the k best, and the largest product so far.
  float gate[32], best[32];
};

// The smallest number above x, which is not NaN; infinities are as they come.
ON_DEVICE float above(float x) {
  const int32_t bits = chip::bits_of(x == 0 ? 0 : x);  // -0 to 0
  return chip::number_of(bits + (bits >= 0 ? 1 : -1));
}

// The state of a warp, and what it does with a tile. Share says which part of a patch's products is the warp's: the
// places of its rows 0 and 16 among the queries, and its first column of keys. It works them out anew each time, since
// registers are few.
template <int K, int COLUMNS, int ROOM, bool REGION, class Share>
struct RowLists {
  using P = Patch<REGION>;
  static constexpr int kEighths = COLUMNS / 8;  // a lane has two columns of each
  static constexpr float kLarge = 0x1p64f;      // sums of exponentials stay below

  const Scan& call;
  Hits<ROOM>& hits;
  const Piece& piece;  // what the warp is at
  List<K> list;        // of row lane()
  int first;           // index of the first key of the last patch
  // Of the four rows that this lane has columns of, in order of its registers: row_of(i).
  float top[4], total[4];  // the softmax: a product that no exponent is far above, and the sum relative to it
  uint32_t filled;         // hits in the buffer: one byte for each of the rows

  ON_DEVICE RowLists(const Scan& call, Hits<ROOM>& hits, const Piece& piece) : call(call), hits(hits), piece(piece) {}

  // To be followed by sync_warp().
  ON_DEVICE void clear() {
    // A row beyond the grid, whose products are all 0, keeps nothing and has no hits.
    const P own = place_of(chip::lane());
    list.clear(own.y < call.queries.height && own.x < call.queries.width ? call.kept : 0);
    first = 0;
    filled = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      top[i] = -INFINITY;
      total[i] = 0;
    }
    hits.gate[chip::lane()] = lowest(0);
    hits.best[chip::lane()] = -INFINITY;
  }

  // Products of the rows with one patch of keys: sums[block][4 * eighth + ...]. Overwrites those that do not count.
  ON_DEVICE void take(float (&sums)[2][COLUMNS / 2], const Slot<REGION>& slot, P keys) {
    hide(sums, slot, keys);
    const int before = first;
    first = (piece.slot * call.positions.height + keys.y) * call.positions.width + keys.x;
    // Where a list is not full nearly every product would be a hit. The buffer is empty then.
    if (some_open()) {
      begin(sums);
    } else if (chip::any(first < before)) {
      show(lowest(first), hits.best[chip::lane()]);  // equal products with lower indices may come
    }
    uint32_t found[4];
    find(sums, found);
    Places places = room_for(found);
    if (places.too_many) {
      flush();
      places = room_for(found);
    }
    if (places.too_many) {
      append(sums, found);
      places = {filled, filled, false};
    }
    if (chip::any(places.end != filled)) {
      chip::note(chip::Event::write);
      write(sums, found, places.first);
    }
    if (call.every) {
      if (REGION && slot.beyond > 0 && slot.beyond != slot.within) {
        add_up<true>(sums, slot, keys);
      } else {
        add_up<false>(sums, slot, keys);
      }
    }
    filled = places.end;
    if (some_open()) flush();
  }

  // Writes the rows' candidates, as list number `half` of the piece's two.
  ON_DEVICE void store(int half) {
    flush();
    const Extent grid = call.queries;
    const int64_t lists = int64_t{kLists} * call.parts * (call.joint ? 1 : call.slots);
    const int64_t first = (int64_t{piece.target} * lists + piece.list + half) * grid.height * grid.width;
    const int lane = chip::lane();
    const P own = place_of(lane);
    if (own.y < grid.height && own.x < grid.width) {
      // The list's last entry is the last of k.
      const int64_t end = (first + int64_t{own.y} * grid.width + own.x + 1) * call.kept;
#pragma unroll
      for (int e = 1; e <= K; ++e) {
        if (e > call.kept) break;
        call.values[end - e] = product_of(list.entry[K - e]);
        call.indices[end - e] = index_of(list.entry[K - e]);
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
  ON_DEVICE static float& at(float (&sums)[2][COLUMNS / 2], int i, int c) {
    return sums[i / 2][c / 2 * 4 + i % 2 * 2 + c % 2];
  }
  ON_DEVICE static float at(const float (&sums)[2][COLUMNS / 2], int i, int c) {
    return sums[i / 2][c / 2 * 4 + i % 2 * 2 + c % 2];
  }

  // Where a row of the warp is on the grid, or beyond its edge.
  ON_DEVICE P place_of(int row) const {
    const int place = Share::first_row(row / 16) + row % 16;
    return {piece.y + place / P::kWide, piece.x + place % P::kWide};
  }

  // The column, in a patch of keys, of a lane's e-th product (0 or 1) of an eighth.
  ON_DEVICE int column(int eighth, int e, int lane) const {
    return Share::first_column() + 8 * eighth + 2 * (lane % 4) + e;
  }

  // Which keys are inside the region of a row: bit 2 * eighth + e.
  ON_DEVICE uint32_t near(P keys, int i) const {
    const int lane = chip::lane(), columns = call.columns * call.columns;
    const P query = place_of(row_of(i, lane));
    const int y = keys.y + Share::first_column() / P::kWide - query.y;
    const int x = keys.x + column(0, 0, lane) % P::kWide - query.x;
    uint32_t found = 0;
#pragma unroll 1
    for (int row = 0; row < COLUMNS / P::kWide; ++row) {  // of keys: two eighths each
      const int dy = abs(y + row), allowed = dy < call.rows ? min(columns, call.limit - dy * dy) : -1;
#pragma unroll
      for (int bit = 0; bit < 4; ++bit) {
        const int dx = x + bit / 2 * 8 + bit % 2;
        found |= uint32_t{dx * dx <= allowed} << (4 * row + bit);
      }
    }
    return found;
  }

  // Products of keys that do not count become -inf.
  ON_DEVICE void hide(float (&sums)[2][COLUMNS / 2], const Slot<REGION>& slot, P keys) const {
    const Extent grid = call.positions;
    if (!REGION && keys.x + kPatch <= grid.width) return;
    const int lane = chip::lane();
    if constexpr (REGION) {
      const int x = keys.x + column(0, 0, lane) % P::kWide, y = keys.y + Share::first_column() / P::kWide;
      uint32_t exists = 0;
#pragma unroll 1
      for (int row = 0; row < COLUMNS / P::kWide; ++row) {
#pragma unroll
        for (int bit = 0; bit < 4; ++bit) {
          const bool there = y + row < grid.height && x + bit / 2 * 8 + bit % 2 < grid.width;
          exists |= uint32_t{there} << (4 * row + bit);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t inside = near(keys, i);
        const uint32_t counts = ((slot.within ? inside : 0) | (slot.beyond ? ~inside : 0)) & exists;
#pragma unroll
        for (int c = 0; c < COLUMNS / 4; ++c) {
          if (!(counts >> c & 1)) at(sums, i, c) = -INFINITY;
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

  // Whether a list of the warp is not full.
  ON_DEVICE bool some_open() const { return chip::any(list.entry[K - 1] <= rank_of(-INFINITY, 0)); }

  // Before any list is full: gates and shifts. No product below a row's gate is among its k best: the gate is the k-th
  // of the largest products of some groups of columns, of which there are more than k; -inf if not so many exist.
  ON_DEVICE void begin(const float (&sums)[2][COLUMNS / 2]) {
    constexpr int kGroups = K <= 5 ? 2 : K <= 10 ? 4 : 8, kColumns = COLUMNS / 4 / kGroups;  // of a lane and row
    static_assert(4 * kGroups > K && kColumns % 2 == 0 && sizeof(float) * kGroups * 128 <= sizeof(hits));
    float* const groups = hits.entry[0][0].value;
    const int lane = chip::lane();
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float most = -INFINITY;
#pragma unroll
        for (int c = g * kColumns; c < (g + 1) * kColumns; ++c) most = fmaxf(most, at(sums, i, c));
        groups[128 * g + 4 * row_of(i, lane) + lane % 4] = most;
      }
    }
    chip::sync_warp();
    float chosen[K], most = -INFINITY;
#pragma unroll
    for (int e = 0; e < K; ++e) chosen[e] = e < K - call.kept ? INFINITY : -INFINITY;
#pragma unroll 1
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        float value = groups[128 * g + 4 * lane + q];
        most = fmaxf(most, value);
#pragma unroll
        for (int e = 0; e < K; ++e) {
          const float more = fmaxf(chosen[e], value);
          value = fminf(chosen[e], value);
          chosen[e] = more;
        }
      }
    }
    chip::sync_warp();
    show(fmaxf(lowest(first), chosen[K - 1]), most);
  }

  // What a product of row lane() must reach to belong into its list, if no index below `next` is to come: an equal one
  // is better only if its index is lower. What does not exist is -inf, and never reaches it.
  ON_DEVICE float lowest(int next) const {
    const Rank worst = list.entry[K - 1];
    const float product = product_of(worst);
    const bool later = !REGION && index_of(worst) < next;
    const float gate = fmaxf(later ? above(product) : product, -FLT_MAX);
    return worst == kOutOfTheWay ? INFINITY : gate;
  }

  // Tells the lanes of row lane() its gate and its largest product.
  ON_DEVICE void show(float lowest, float most) {
    const int lane = chip::lane();
    chip::sync_warp();
    hits.gate[lane] = lowest;
    hits.best[lane] = most;
    chip::sync_warp();
    if (!call.every) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) lift(i, hits.best[row_of(i, lane)]);
  }

  // Which pairs of products reach their row's gate: bit `eighth` of a row's word.
  ON_DEVICE void find(const float (&sums)[2][COLUMNS / 2], uint32_t (&found)[4]) const {
    float gate[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      found[i] = 0;
      gate[i] = hits.gate[row_of(i, chip::lane())];
    }
#pragma unroll
    for (int j = kEighths - 1; j >= 0; --j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // A difference has the sign of the comparison, and goes to other units than a comparison would.
        found[i] = chip::with_sign(found[i], fmaxf(at(sums, i, 2 * j), at(sums, i, 2 * j + 1)) - gate[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) found[i] ^= (1u << kEighths) - 1;
  }

  // Takes products that were found, for which an empty buffer has no room at once, a few of each lane and row at a
  // time.
  ON_DEVICE void append(const float (&sums)[2][COLUMNS / 2], uint32_t (&found)[4]) {
    while (chip::any((found[0] | found[1] | found[2] | found[3]) != 0)) {
      uint32_t now[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        now[i] = found[i];
        for (int n = 0; n < ROOM / 4; ++n) now[i] &= now[i] - 1;  // without its lowest bit
        now[i] ^= found[i];
        found[i] ^= now[i];
      }
      const Places places = room_for(now);
      chip::note(chip::Event::write);
      write(sums, now, places.first);
      filled = places.end;
      flush();
    }
  }

  struct Places {
    uint32_t first, end;  // in the buffer, one byte a row: this lane's, and all lanes'
    bool too_many;        // for some row of the warp
  };

  ON_DEVICE Places room_for(const uint32_t (&now)[4]) const {
    static_assert(COLUMNS / 2 + ROOM < 256 && ROOM < 128);
    uint32_t own = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) own |= uint32_t(chip::count(now[i])) << (8 * i);
    const int lane = chip::lane();
    const uint32_t beside = chip::from_lane_xor(own, 1), across = chip::from_lane_xor(own + beside, 2);
    const uint32_t end = filled + own + beside + across;
    // In each byte the highest bit, if it is more than ROOM.
    const uint32_t more = (end | (end & 0x7f7f7f7f) + (127 - ROOM) * 0x01010101u) & 0x80808080;
    return {filled + (lane & 1 ? beside : 0) + (lane & 2 ? across : 0), end, chip::any(more != 0)};
  }

  // Appends the pairs of `found` to the buffer, from that place of each row on (one byte a row).
  ON_DEVICE void write(const float (&sums)[2][COLUMNS / 2], const uint32_t (&found)[4], uint32_t place) {
    const int lane = chip::lane(), wide = call.positions.width;
    chip::Cursor to[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = chip::Cursor(&hits.entry[place >> (8 * i) & 255][row_of(i, lane)]);
    int index = first + (REGION ? Share::first_column() / P::kWide * wide + 2 * (lane % 4) : column(0, 0, lane));
#pragma unroll
    for (int j = 0; j < kEighths; ++j) {
      chip::keep(index);  // one addition an eighth, not one a row
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float one = at(sums, i, 2 * j), other = at(sums, i, 2 * j + 1);
        chip::append_if<sizeof(hits.entry[0])>(found[i] & 1u << j, to[i], one, other, index);
      }
      index += REGION && j % 2 ? wide - 8 : 8;
    }
  }

  // Takes what is in the buffer into the lists.
  ON_DEVICE void flush() {
    chip::sync_warp();
    const int lane = chip::lane();
    const int own = chip::from_lane(filled, lane % 8 * 4) >> (lane / 8 * 8) & 255;
    const int rounds = int(chip::most(uint32_t(own)));
    chip::note(chip::Event::flush);
    float most = hits.best[lane];
    Hit next = hits.entry[0][lane];
#pragma unroll 1
    for (int n = 0; n < rounds; ++n) {
      const Hit hit = next;
      next = hits.entry[min(n + 1, ROOM - 1)][lane];
      const int second = hit.value[1] > hit.value[0];
      // A comparison with NaN is false.
      const float more = fmaxf(hit.value[0], hit.value[1]), less = fminf(hit.value[0], hit.value[1]);
      list.insert(n < own && more > -INFINITY ? rank_of(more, hit.index + second) : kNoRank);
      most = n < own ? fmaxf(most, more) : most;
      const Rank other = n < own && less > -INFINITY ? rank_of(less, hit.index + 1 - second) : kNoRank;
      chip::note(chip::Event::insertion);
      if (chip::any(other > list.entry[K - 1])) {
        chip::note(chip::Event::second_insertion);
        list.insert(other);
      }
    }
    chip::sync_warp();
    filled = 0;
    show(lowest(REGION ? 0 : first + kPatch), most);
  }

  // The softmax. With MIXED keys inside and outside the region count differently.
  template <bool MIXED>
  ON_DEVICE void add_up(const float (&sums)[2][COLUMNS / 2], const Slot<REGION>& slot, P keys) {
    float part[4];
    if (MIXED) lift_all(sums);  // and not a second time: the compiler would keep 128 counts for that
    exponentials<MIXED>(sums, slot, keys, part);
    // Products far above all before are rare, so that nobody looks for the largest of each patch.
    if (!MIXED && chip::any(!(part[0] < kLarge && part[1] < kLarge && part[2] < kLarge && part[3] < kLarge))) {
      lift_all(sums);
      exponentials<MIXED>(sums, slot, keys, part);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) total[i] += part[i];
  }

  // Their sum over this lane's products of each row.
  template <bool MIXED>
  ON_DEVICE void exponentials(const float (&sums)[2][COLUMNS / 2], const Slot<REGION>& slot, P keys,
                              float (&part)[4]) const {
    const float within = float(slot.within), beyond = float(slot.beyond);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float shift = top[i] == -INFINITY ? 0 : top[i];
      const uint32_t inside = MIXED ? near(keys, i) : 0;
      part[i] = 0;
#pragma unroll
      for (int c = 0; c < COLUMNS / 4; ++c) {
        // Not one multiplication and addition: of large logits it would lose the difference.
        const float one = chip::power_of_two((at(sums, i, c) - shift) * call.scale);
        part[i] += MIXED ? one * (inside >> c & 1 ? within : beyond) : one;
      }
      if (!MIXED) part[i] *= within;
    }
  }

  ON_DEVICE void lift_all(const float (&sums)[2][COLUMNS / 2]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float most = -INFINITY;
#pragma unroll
      for (int c = 0; c < COLUMNS / 4; ++c) most = fmaxf(most, at(sums, i, c));
      lift(i, most);
    }
  }

  // Makes the softmax of the i-th row relative to `most` where that is more.
  ON_DEVICE void lift(int i, float most) {
    const float higher = fmaxf(top[i], most);
    if (higher > top[i]) total[i] = total[i] * chip::power_of_two((top[i] - higher) * call.scale);
    top[i] = higher;
  }
};

}  // namespace timecycle
