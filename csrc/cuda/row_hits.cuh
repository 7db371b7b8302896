// What a warp makes of its products while they are in registers: softmax sums, and which products may be among the k
// best.
//
// A warp has 32 rows of `COLUMNS` products: two blocks of 16 rows, laid out as the tensor cores leave them, so that a
// row is with the four lanes of a quad. Row r is 0 to 15 for the first block, 16 to 31 for the second.
//
// Products that may belong into a list (hits) are appended to a buffer in shared memory, without a branch, and handed
// over after each patch to who keeps the lists: another warp on Hopper, else the same one.
#pragma once

#include <cfloat>
#include <cmath>

#include "hits.cuh"

namespace timecycle {

// The state of a warp, and what it does with a tile. Share says which part of a patch's products is the warp's: the
// places of its rows 0 and 16 among the queries, and its first column of keys. It works them out anew each time, since
// registers are few. Keeper is who keeps the lists:
//   wait()              until the buffer may be written, and its gates are those of the list so far
//   take_hits(bool)     the buffer has the hits of a patch, or some of them and there are more
//   take_sums()         the buffer has the softmax of a list
template <int K, int COLUMNS, int ROOM, bool REGION, class Share, class Keeper>
struct RowHits {
  using P = Patch<REGION>;
  static constexpr int kEighths = COLUMNS / 8;  // a lane has two columns of each
  static constexpr float kLarge = 0x1p64f;      // sums of exponentials stay below

  const Scan& call;
  Hits<ROOM>& hits;
  const Piece& piece;  // what the warp is at
  Keeper& keeper;
  // Of the four rows that this lane has columns of, in order of its registers: row_of(i).
  float top[4], total[4];  // the softmax: a product that no exponent is far above, and the sum relative to it
  bool fresh;              // whether the list has no keys of this warp yet

  ON_DEVICE RowHits(const Scan& call, Hits<ROOM>& hits, const Piece& piece, Keeper& keeper)
      : call(call), hits(hits), piece(piece), keeper(keeper) {
    clear();
  }

  ON_DEVICE void clear() {
    fresh = true;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      top[i] = -INFINITY;
      total[i] = 0;
    }
  }

  // Products of the rows with one patch of keys: sums[block][4 * eighth + ...]. Overwrites those that do not count.
  ON_DEVICE void take(float (&sums)[2][COLUMNS / 2], const Slot<REGION>& slot, P keys) {
    hide(sums, slot, keys);
    keeper.wait();
    // Where a list is not full nearly every product would be a hit.
    const float gate = fresh ? least_gate() : hits.gate[chip::lane()];
    if (chip::any(gate == -FLT_MAX)) begin(sums, gate);
    fresh = false;
    uint32_t found[4];
    find(sums, found);
    hand_over(sums, found);
    if (!call.softmax_over_all) return;
    if (REGION && slot.beyond > 0 && slot.beyond != slot.within) {
      add_up<true>(sums, slot, keys);
    } else {
      add_up<false>(sums, slot, keys);
    }
  }

  // Hands over the softmax of a list that is complete.
  ON_DEVICE void end() {
    keeper.wait();
    const int lane = chip::lane();
    ListSums& out = hits.list_sums();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float most = top[i];
      for (int step = 1; step < 4; step *= 2) most = fmaxf(most, chip::from_lane_xor(most, step));
      float sum =
          top[i] == -INFINITY ? 0 : total[i] * chip::power_of_two(fmaf(-most, call.softmax_scale_log2, shift(i)));
      for (int step = 1; step < 4; step *= 2) sum += chip::from_lane_xor(sum, step);
      if (lane % 4 != 0) continue;
      out.top[row_of(i, lane)] = most;
      out.sum[row_of(i, lane)] = sum;
    }
    keeper.take_sums();
  }

 private:
  ON_DEVICE static int row_of(int i, int lane) { return 8 * i + lane / 4; }
  ON_DEVICE static float& at(float (&sums)[2][COLUMNS / 2], int i, int c) {
    return sums[i / 2][c / 2 * 4 + i % 2 * 2 + c % 2];
  }
  ON_DEVICE static float at(const float (&sums)[2][COLUMNS / 2], int i, int c) {
    return sums[i / 2][c / 2 * 4 + i % 2 * 2 + c % 2];
  }

  // The column, in a patch of keys, of a lane's e-th product (0 or 1) of an eighth.
  ON_DEVICE int column(int eighth, int e, int lane) const {
    return Share::first_column() + 8 * eighth + 2 * (lane % 4) + e;
  }

  // Which keys are inside the neighborhood of a row: bit 2 * eighth + e.
  ON_DEVICE uint32_t near(P keys, int i) const {
    const int lane = chip::lane(), columns = call.columns * call.columns;
    const P query = place_of<REGION, Share>(piece, row_of(i, lane));
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

  // The gate of row lane() where its list has no keys: a row beyond the grid, whose products are all 0, has no hits.
  ON_DEVICE float least_gate() const {
    const P own = place_of<REGION, Share>(piece, chip::lane());
    return own.y < call.queries.height && own.x < call.queries.width ? -FLT_MAX : INFINITY;
  }

  // Where a list is not full: gates from the products themselves, and shifts. No product below a row's gate is among
  // its k best: the gate is the k-th of the largest products of some groups of columns, of which there are more than k;
  // or `gate`, which is row lane()'s, if not so many exist.
  ON_DEVICE void begin(const float (&sums)[2][COLUMNS / 2], float gate) {
    constexpr int kGroups = K <= 5 ? 4 : 8, kColumns = COLUMNS / 4 / kGroups;  // of a lane and row
    static_assert(4 * kGroups > K && kColumns % 2 == 0 && int(sizeof(float)) * kGroups * 128 <= hits.kScratch);
    float* const groups = hits.template scratch<float>();
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
    for (int e = 0; e < K; ++e) chosen[e] = e < K - call.k ? INFINITY : -INFINITY;
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
    hits.gate[lane] = fmaxf(gate, chosen[K - 1]);
    groups[lane] = most;
    chip::sync_warp();
#pragma unroll
    for (int i = 0; i < 4; ++i) lift(i, groups[row_of(i, lane)]);
    chip::sync_warp();
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

  // Hands over the pairs of `found`: as many at a time as there is room for.
  ON_DEVICE void hand_over(const float (&sums)[2][COLUMNS / 2], uint32_t (&found)[4]) {
    for (;;) {
      const Places places = places_of(found);
      uint32_t now[4] = {found[0], found[1], found[2], found[3]};
      if (places.too_many) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int room = ROOM - int(places.first >> (8 * i) & 255);
          for (int n = 0; n < ROOM; ++n) found[i] &= n < room ? found[i] - 1 : found[i];  // without its lowest bit
          now[i] ^= found[i];
        }
      }
      if (places.some) {
        chip::note(chip::Event::write);
        write(sums, now, places.first);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) hits.places[row_of(i, chip::lane())][chip::lane() % 4] = uint16_t(now[i]);
      keeper.take_hits(places.too_many);
      if (!places.too_many) return;
      keeper.wait();
    }
  }

  struct Places {
    uint32_t first;       // in the buffer, of this lane's hits, one byte a row
    bool some, too_many;  // for some row of the warp
  };

  ON_DEVICE Places places_of(const uint32_t (&found)[4]) const {
    static_assert(COLUMNS / 2 < 128 && ROOM < 128);
    uint32_t own = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) own |= uint32_t(chip::count(found[i])) << (8 * i);
    const int lane = chip::lane();
    const uint32_t beside = chip::from_lane_xor(own, 1), across = chip::from_lane_xor(own + beside, 2);
    const uint32_t end = own + beside + across;
    // In each byte the highest bit, if it is more than ROOM.
    const uint32_t more = end + (127 - ROOM) * 0x01010101u & 0x80808080;
    return {(lane & 1 ? beside : 0) + (lane & 2 ? across : 0), chip::any(end != 0), chip::any(more != 0)};
  }

  // Appends the pairs of `found` to the buffer, from that place of each row on (one byte a row).
  ON_DEVICE void write(const float (&sums)[2][COLUMNS / 2], const uint32_t (&found)[4], uint32_t place) {
    chip::Cursor to[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = chip::Cursor(&hits.entry[place >> (8 * i) & 255][row_of(i, chip::lane())]);
#pragma unroll
    for (int j = 0; j < kEighths; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float one = at(sums, i, 2 * j), other = at(sums, i, 2 * j + 1);
        chip::append_if<sizeof(hits.entry[0])>(found[i] & 1u << j, to[i], one, other);
      }
    }
  }

  // The softmax. With MIXED keys inside and outside the neighborhood count differently.
  template <bool MIXED>
  ON_DEVICE void add_up(const float (&sums)[2][COLUMNS / 2], const Slot<REGION>& slot, P keys) {
    float part[4];
    // Keys of the first patch may all have been outside the neighborhood of a row.
    const float least = fminf(fminf(top[0], top[1]), fminf(top[2], top[3]));
    if (MIXED || (REGION && chip::any(least == -INFINITY))) {
      lift_all(sums);  // and not a second time if MIXED: the compiler would keep 128 counts for that
    }
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
      const float shift = this->shift(i);
      const uint32_t inside = MIXED ? near(keys, i) : 0;
      part[i] = 0;
#pragma unroll
      for (int c = 0; c < COLUMNS / 4; ++c) {
        const float one = chip::power_of_two(fmaf(at(sums, i, c), call.softmax_scale_log2, -shift));
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
    const float before = top[i], old = shift(i);
    top[i] = fmaxf(before, most);
    if (top[i] > before) total[i] = before == -INFINITY ? 0 : total[i] * chip::power_of_two(old - shift(i));
  }

  // What the exponents of the i-th row are relative to, as it is rounded: every one of them subtracts the same number.
  ON_DEVICE float shift(int i) const { return top[i] == -INFINITY ? 0 : top[i] * call.softmax_scale_log2; }
};

}  // namespace timecycle
