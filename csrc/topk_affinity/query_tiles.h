// How queries are put into tiles, and which keys each tile meets: all of a slot, or with a neighborhood those of the
// box around a square of the grid.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "simd/column_epilogue.h"
#include "topk_affinity/grid_patches.h"
#include "topk_affinity/topk_affinity.h"

namespace timecycle {

// One tile of queries: a patch of kLanes, and where on the grid they stand if there is a neighborhood.
struct QueryTile : Patch {
  explicit QueryTile(const Patch& patch, int64_t width) : Patch(patch) {
    for (int64_t q = 0; q < count() && width > 0; ++q) {
      row[q] = static_cast<int32_t>(positions[q] / width);
      column[q] = static_cast<int32_t>(positions[q] % width);
    }
  }

  alignas(64) int32_t column[kLanes] = {};
  int32_t row[kLanes] = {};
};

inline std::vector<QueryTile> make_tiles(const TopkAffinity& s) {
  std::vector<QueryTile> tiles;
  for (const Patch& patch : patches_of(s.queries, s.grid_width, kLanes)) tiles.emplace_back(patch, s.grid_width);
  return tiles;
}

// How many keys of a slot lie inside a query's neighborhood, at most.
inline int64_t keys_in_neighborhood(const TopkAffinity& s) {
  if (s.grid_width == 0) return s.positions;
  int64_t keys = 0;
  for (size_t d = 0; d < s.half_widths.size(); ++d) keys += (d == 0 ? 1 : 2) * (2 * s.half_widths[d] + 1);
  return std::min(keys, s.positions);
}

// Leads `group` tiles of queries past the keys of one slot that count for any of their queries. ready(first, count) is
// called for a run of keys before take(g, first, rows) is for parts of it, at most kRows keys of one grid row (without
// a neighborhood: of the slot).
template <typename Ready, typename Take>
void walk(const TopkAffinity& s, const QueryTile* tiles, int64_t group, const int64_t* multiplicity, Ready ready,
          Take take) {
  if (multiplicity[0] == 0 && (s.grid_width == 0 || multiplicity[1] == 0)) return;
  if (s.grid_width == 0) {
    for (int64_t m = 0; m < s.positions; m += kRows) {
      const int64_t rows = std::min(kRows, s.positions - m);
      ready(m, rows);
      for (int64_t g = 0; g < group; ++g) take(g, m, rows);
    }
    return;
  }
  std::vector<int64_t> first(group), last(group);
  for (int64_t y = 0; y < s.positions / s.grid_width; ++y) {
    int64_t left = s.grid_width, right = -1;
    for (int64_t g = 0; g < group; ++g) {
      first[g] = 0, last[g] = s.grid_width - 1;
      if (multiplicity[1] == 0) {
        const int64_t aside = half_width_at(s, std::max<int64_t>({0, tiles[g].top - y, y - tiles[g].bottom}));
        first[g] = std::max<int64_t>(0, tiles[g].left - aside);
        last[g] = aside < 0 ? -1 : std::min(last[g], tiles[g].right + aside);
      }
      if (last[g] < 0) continue;
      left = std::min(left, first[g]), right = std::max(right, last[g]);
    }
    if (right < 0) continue;
    ready(y * s.grid_width + left, right - left + 1);
    for (int64_t g = 0; g < group; ++g)
      for (int64_t x = first[g]; x <= last[g]; x += kRows)
        take(g, y * s.grid_width + x, std::min(kRows, last[g] - x + 1));
  }
}

// counts [rows][kLanes]: how often keys first .. first + rows - 1, of one grid row, count for each query of a tile.
inline void count_tile(const TopkAffinity& s, const QueryTile& tile, int64_t first, int64_t rows,
                       const int64_t* multiplicity, float* counts) {
  alignas(64) int32_t allowed[kLanes];
  const int64_t y = first / s.grid_width;
  for (int64_t q = 0; q < kLanes; ++q) allowed[q] = half_width_at(s, std::abs(y - tile.row[q]));
  count_row(counts, rows, static_cast<int32_t>(first - y * s.grid_width), tile.column, allowed,
            static_cast<float>(multiplicity[0]), static_cast<float>(multiplicity[1]));
}

// How often one key counts for one query of a tile.
inline int64_t times_of(const TopkAffinity& s, const QueryTile& tile, int64_t q, int64_t key,
                        const int64_t* multiplicity) {
  if (!restricted(s, multiplicity)) return multiplicity[0];
  const int64_t dy = std::abs(key / s.grid_width - tile.row[q]), dx = std::abs(key % s.grid_width - tile.column[q]);
  return multiplicity[dx <= half_width_at(s, dy) ? 0 : 1];
}

}  // namespace timecycle
