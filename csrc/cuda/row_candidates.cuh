// The epilogue of a warp's products, in registers: softmax sums, and candidates, the products that may be among the k
// best.
//
// A warp has 32 rows of `COLUMNS` products: two blocks of 16 rows, in the tensor cores' layout, so that a row is held
// by the four lanes of a quad. Rows 0 to 15 are the first block, 16 to 31 the second.
//
// Candidates are appended to a buffer in shared memory, without a branch, and passed after each patch to the warp that
// keeps the lists: another warp on Hopper, else the same.
#pragma once

#include <cfloat>
#include <cmath>

#include "candidates.cuh"

namespace timecycle {

// WarpTile defines the warp's part of a patch's products: where its rows 0 and 16 are among the queries, and its first
// column of keys. These are recomputed each time, since registers are scarce. ListSink is the warp that keeps the
// lists:
//   wait()                  waits until the buffer may be written and its thresholds are up to date
//   take_candidates(more)   the buffer has the candidates of a patch, or with `more` only some of them
//   take_sums()             the buffer has the softmax of a list
template <int K, int COLUMNS, int CAPACITY, bool NEIGHBORHOOD, class WarpTile, class ListSink>
struct RowCandidates {
  using P = Patch<NEIGHBORHOOD>;
  static constexpr int kEighths = COLUMNS / 8;  // groups of eight columns; a lane has two columns of each
  static constexpr float kLarge = 0x1p64f;      // a larger sum of exponentials needs a larger shift

  const Problem& p;
  CandidateBuffer<CAPACITY>& buffer;
  const WorkItem& item;  // the one in progress
  ListSink& sink;
  // For the four rows that this lane has columns of, row_of(i):
  float top[4], total[4];  // the online softmax's shift, which products exceed by little, and its sum
  bool fresh;              // whether the list has no keys of this warp yet

  ON_DEVICE RowCandidates(const Problem& p, CandidateBuffer<CAPACITY>& buffer, const WorkItem& item, ListSink& sink)
      : p(p), buffer(buffer), item(item), sink(sink) {
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

  // Processes the products of the rows with one patch of keys, sums[block][4 * eighth + ...], and overwrites those of
  // keys that do not count by -inf.
  ON_DEVICE void take(float (&sums)[2][COLUMNS / 2], const SlotPatches<NEIGHBORHOOD>& slot, P keys) {
    mask_keys(sums, slot, keys);
    sink.wait();
    // With fewer than k keys in the list nearly every product would be a candidate.
    const float threshold = fresh ? initial_threshold() : buffer.threshold[chip::lane()];
    if (chip::any(threshold == -FLT_MAX)) estimate_thresholds(sums, threshold);
    fresh = false;
    uint32_t found[4];
    find(sums, found);
    push_all(sums, found);
    if (!p.softmax_over_all) return;
    if (NEIGHBORHOOD && slot.outside > 0 && slot.outside != slot.inside) {
      accumulate_softmax<true>(sums, slot, keys);
    } else {
      accumulate_softmax<false>(sums, slot, keys);
    }
  }

  // Passes on the softmax of a complete list.
  ON_DEVICE void end() {
    sink.wait();
    const int lane = chip::lane();
    ListSums& out = buffer.list_sums();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float most = top[i];
      for (int step = 1; step < 4; step *= 2) most = fmaxf(most, chip::from_lane_xor(most, step));
      float sum = top[i] == -INFINITY ? 0 : total[i] * chip::power_of_two(fmaf(-most, p.softmax_scale_log2, shift(i)));
      for (int step = 1; step < 4; step *= 2) sum += chip::from_lane_xor(sum, step);
      if (lane % 4 != 0) continue;
      out.top[row_of(i, lane)] = most;
      out.sum[row_of(i, lane)] = sum;
    }
    sink.take_sums();
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
    return WarpTile::first_column() + 8 * eighth + 2 * (lane % 4) + e;
  }

  // The keys inside the neighborhood of row_of(i): bit 2 * eighth + e.
  ON_DEVICE uint32_t inside_bits(P keys, int i) const {
    const int lane = chip::lane(), columns = p.columns * p.columns;
    const P query = place_of<NEIGHBORHOOD, WarpTile>(item, row_of(i, lane));
    const int y = keys.y + WarpTile::first_column() / P::kWide - query.y;
    const int x = keys.x + column(0, 0, lane) % P::kWide - query.x;
    uint32_t found = 0;
#pragma unroll 1
    for (int row = 0; row < COLUMNS / P::kWide; ++row) {  // of keys: two eighths each
      const int dy = abs(y + row), allowed = dy < p.rows ? min(columns, p.limit - dy * dy) : -1;
#pragma unroll
      for (int bit = 0; bit < 4; ++bit) {
        const int dx = x + bit / 2 * 8 + bit % 2;
        found |= uint32_t{dx * dx <= allowed} << (4 * row + bit);
      }
    }
    return found;
  }

  // Products of keys that do not count become -inf.
  ON_DEVICE void mask_keys(float (&sums)[2][COLUMNS / 2], const SlotPatches<NEIGHBORHOOD>& slot, P keys) const {
    const Extent grid = p.positions;
    if (!NEIGHBORHOOD && keys.x + kPatch <= grid.width) return;
    const int lane = chip::lane();
    if constexpr (NEIGHBORHOOD) {
      const int x = keys.x + column(0, 0, lane) % P::kWide, y = keys.y + WarpTile::first_column() / P::kWide;
      uint32_t exists = 0;
#pragma unroll 1
      for (int row = 0; row < COLUMNS / P::kWide; ++row) {
#pragma unroll
        for (int bit = 0; bit < 4; ++bit) {
          const bool valid = y + row < grid.height && x + bit / 2 * 8 + bit % 2 < grid.width;
          exists |= uint32_t{valid} << (4 * row + bit);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t inside = inside_bits(keys, i);
        const uint32_t counts = ((slot.inside ? inside : 0) | (slot.outside ? ~inside : 0)) & exists;
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

  // The threshold of row lane() while its list is empty. A row outside the grid, whose products are all 0, has no
  // candidates.
  ON_DEVICE float initial_threshold() const {
    const P own = place_of<NEIGHBORHOOD, WarpTile>(item, chip::lane());
    return own.y < p.queries.height && own.x < p.queries.width ? -FLT_MAX : INFINITY;
  }

  // Sets thresholds of lists that are not full, and shifts, from the products themselves. A row's threshold is the k-th
  // largest of the maxima of more than k groups of columns, a lower bound of the k-th product, or if that is larger,
  // `threshold`, which is row lane()'s.
  ON_DEVICE void estimate_thresholds(const float (&sums)[2][COLUMNS / 2], float threshold) {
    constexpr int kGroups = K <= 5 ? 4 : 8, kColumns = COLUMNS / 4 / kGroups;  // of a lane and row
    static_assert(4 * kGroups > K && kColumns % 2 == 0 && int(sizeof(float)) * kGroups * 128 <= buffer.kScratch);
    float* const groups = buffer.template scratch<float>();
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
    for (int e = 0; e < K; ++e) chosen[e] = e < K - p.k ? INFINITY : -INFINITY;
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
    buffer.threshold[lane] = fmaxf(threshold, chosen[K - 1]);
    groups[lane] = most;
    chip::sync_warp();
#pragma unroll
    for (int i = 0; i < 4; ++i) raise_shift(i, groups[row_of(i, lane)]);
    chip::sync_warp();
  }

  // The pairs of products that reach their row's threshold: bit `eighth` of a row's word.
  ON_DEVICE void find(const float (&sums)[2][COLUMNS / 2], uint32_t (&found)[4]) const {
    float threshold[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      found[i] = 0;
      threshold[i] = buffer.threshold[row_of(i, chip::lane())];
    }
#pragma unroll
    for (int j = kEighths - 1; j >= 0; --j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        // The sign of a difference instead of a comparison, since other units compute it.
        found[i] = chip::with_sign(found[i], fmaxf(at(sums, i, 2 * j), at(sums, i, 2 * j + 1)) - threshold[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) found[i] ^= (1u << kEighths) - 1;
  }

  // Passes on the pairs of `found`, as many at a time as fit.
  ON_DEVICE void push_all(const float (&sums)[2][COLUMNS / 2], uint32_t (&found)[4]) {
    for (;;) {
      const Offsets offsets = offsets_of(found);
      uint32_t now[4] = {found[0], found[1], found[2], found[3]};
      if (offsets.too_many) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int room = CAPACITY - int(offsets.first >> (8 * i) & 255);
          for (int n = 0; n < CAPACITY; ++n) found[i] &= n < room ? found[i] - 1 : found[i];  // without its lowest bit
          now[i] ^= found[i];
        }
      }
      if (offsets.some) {
        chip::note(chip::Event::write);
        push_candidates(sums, now, offsets.first);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) buffer.column_bits[row_of(i, chip::lane())][chip::lane() % 4] = uint16_t(now[i]);
      sink.take_candidates(offsets.too_many);
      if (!offsets.too_many) return;
      sink.wait();
    }
  }

  struct Offsets {
    uint32_t first;       // of this lane's candidates in the buffer: one byte per row
    bool some, too_many;  // whether any row of the warp has candidates, and more than fit
  };

  ON_DEVICE Offsets offsets_of(const uint32_t (&found)[4]) const {
    static_assert(COLUMNS / 2 < 128 && CAPACITY < 128);
    uint32_t own = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) own |= uint32_t(chip::count(found[i])) << (8 * i);
    const int lane = chip::lane();
    const uint32_t beside = chip::from_lane_xor(own, 1), across = chip::from_lane_xor(own + beside, 2);
    const uint32_t end = own + beside + across;
    // The highest bit of each byte: whether the byte is above CAPACITY.
    const uint32_t more = end + (127 - CAPACITY) * 0x01010101u & 0x80808080;
    return {(lane & 1 ? beside : 0) + (lane & 2 ? across : 0), chip::any(end != 0), chip::any(more != 0)};
  }

  // Writes the pairs of `found` to the buffer, from each row's offset on (one byte per row).
  ON_DEVICE void push_candidates(const float (&sums)[2][COLUMNS / 2], const uint32_t (&found)[4], uint32_t offset) {
    chip::Cursor to[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = chip::Cursor(&buffer.entry[offset >> (8 * i) & 255][row_of(i, chip::lane())]);
#pragma unroll
    for (int j = 0; j < kEighths; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float one = at(sums, i, 2 * j), other = at(sums, i, 2 * j + 1);
        chip::append_if<sizeof(buffer.entry[0])>(found[i] & 1u << j, to[i], one, other);
      }
    }
  }

  // The online softmax. With MIXED, keys inside and outside the neighborhood count differently.
  template <bool MIXED>
  ON_DEVICE void accumulate_softmax(const float (&sums)[2][COLUMNS / 2], const SlotPatches<NEIGHBORHOOD>& slot,
                                    P keys) {
    float part[4];
    // All keys of the first patch may be outside the neighborhood of a row.
    const float least = fminf(fminf(top[0], top[1]), fminf(top[2], top[3]));
    if (MIXED || (NEIGHBORHOOD && chip::any(least == -INFINITY))) {
      raise_shifts(sums);  // if MIXED here only: to do it below, the compiler would keep 128 counts in registers
    }
    exponentials<MIXED>(sums, slot, keys, part);
    // Products far above all earlier ones are rare, so the maximum of each patch is not computed.
    if (!MIXED && chip::any(!(part[0] < kLarge && part[1] < kLarge && part[2] < kLarge && part[3] < kLarge))) {
      raise_shifts(sums);
      exponentials<MIXED>(sums, slot, keys, part);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) total[i] += part[i];
  }

  // The sum of exponentials over this lane's products of each row.
  template <bool MIXED>
  ON_DEVICE void exponentials(const float (&sums)[2][COLUMNS / 2], const SlotPatches<NEIGHBORHOOD>& slot, P keys,
                              float (&part)[4]) const {
    const float inside_times = float(slot.inside), outside_times = float(slot.outside);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float shift = this->shift(i);
      const uint32_t inside = MIXED ? inside_bits(keys, i) : 0;
      part[i] = 0;
#pragma unroll
      for (int c = 0; c < COLUMNS / 4; ++c) {
        const float one = chip::power_of_two(fmaf(at(sums, i, c), p.softmax_scale_log2, -shift));
        part[i] += MIXED ? one * (inside >> c & 1 ? inside_times : outside_times) : one;
      }
      if (!MIXED) part[i] *= inside_times;
    }
  }

  ON_DEVICE void raise_shifts(const float (&sums)[2][COLUMNS / 2]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float most = -INFINITY;
#pragma unroll
      for (int c = 0; c < COLUMNS / 4; ++c) most = fmaxf(most, at(sums, i, c));
      raise_shift(i, most);
    }
  }

  // Raises the shift of the i-th row to `most` if that is larger.
  ON_DEVICE void raise_shift(int i, float most) {
    const float before = top[i], old = shift(i);
    top[i] = fmaxf(before, most);
    if (top[i] > before) total[i] = before == -INFINITY ? 0 : total[i] * chip::power_of_two(old - shift(i));
  }

  // The shift of the i-th row's exponents, rounded once, so that all of them subtract the same number.
  ON_DEVICE float shift(int i) const { return top[i] == -INFINITY ? 0 : top[i] * p.softmax_scale_log2; }
};

}  // namespace timecycle
