// Positions of a frame in blocks, which blocks see each other under a neighborhood, and the iteration of query tiles
// over the keys of a slot: all keys, or with a neighborhood those of a box around the tile.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "simd/tile.h"
#include "topk_affinity/problem.h"

namespace timecycle {

// A run of positions, or under a neighborhood a rectangle of the grid, row by row.
struct PositionBlock {
  std::vector<int64_t> positions;
  int64_t top = 0, bottom = 0, left = 0, right = 0;  // of the rectangle

  int64_t count() const { return static_cast<int64_t>(positions.size()); }
};

// All `positions` of a frame, `size` to a block; grid_width is 0 without a neighborhood.
inline std::vector<PositionBlock> position_blocks(int64_t positions, int64_t grid_width, int64_t size) {
  constexpr int64_t kTall = 8;
  std::vector<PositionBlock> blocks;
  if (grid_width == 0) {
    for (int64_t first = 0; first < positions; first += size) {
      PositionBlock& block = blocks.emplace_back();
      for (int64_t p = first; p < std::min(first + size, positions); ++p) block.positions.push_back(p);
    }
    return blocks;
  }
  const int64_t height = positions / grid_width, wide = size / kTall;
  for (int64_t top = 0; top < height; top += kTall)
    for (int64_t left = 0; left < grid_width; left += wide) {
      PositionBlock& block = blocks.emplace_back();
      block.top = top, block.bottom = std::min(top + kTall, height) - 1;
      block.left = left, block.right = std::min(left + wide, grid_width) - 1;
      for (int64_t y = top; y <= block.bottom; ++y)
        for (int64_t x = left; x <= block.right; ++x) block.positions.push_back(y * grid_width + x);
    }
  return blocks;
}

// The largest |dx| inside the neighborhood, `distance` rows away; -1 if the row is outside.
inline int32_t half_width_at(const Problem& p, int64_t distance) {
  return distance < static_cast<int64_t>(p.half_widths.size()) ? static_cast<int32_t>(p.half_widths[distance]) : -1;
}

// Whether a slot's keys count differently inside and outside the neighborhood; multiplicity [2] is the slot's.
inline bool is_restricted(const Problem& p, const int64_t* multiplicity) {
  return p.grid_width > 0 && multiplicity[0] != multiplicity[1];
}

// Whether any key of a block counts for any query of another, in a slot of that multiplicity [2].
inline bool sees(const Problem& p, const PositionBlock& queries, const PositionBlock& keys,
                 const int64_t* multiplicity) {
  if (p.grid_width == 0 || multiplicity[1] > 0) return multiplicity[0] > 0 || (p.grid_width > 0 && multiplicity[1] > 0);
  const int64_t rows = std::max<int64_t>({0, queries.top - keys.bottom, keys.top - queries.bottom});
  const int64_t columns = std::max<int64_t>({0, queries.left - keys.right, keys.left - queries.right});
  return multiplicity[0] > 0 && rows < static_cast<int64_t>(p.half_widths.size()) && columns <= p.half_widths[rows];
}

// Multiplicity [count][kLanes] of the keys of a block for queries first .. first + count - 1 of another, in a slot of
// that multiplicity [2]. `out` has room for it.
inline TileMultiplicity block_multiplicity(const Problem& p, const PositionBlock& queries, int64_t first, int64_t count,
                                           const PositionBlock& keys, const int64_t* multiplicity, float* out) {
  if (!is_restricted(p, multiplicity)) return {nullptr, multiplicity[0]};
  alignas(64) int32_t column[kLanes] = {}, half_width[kLanes] = {};
  for (int64_t k = 0; k < keys.count(); ++k) column[k] = static_cast<int32_t>(keys.positions[k] % p.grid_width);
  for (int64_t q = 0; q < count;) {
    const int64_t y = queries.positions[first + q] / p.grid_width, x = queries.positions[first + q] % p.grid_width;
    const int64_t run = std::min(count - q, queries.right + 1 - x);
    for (int64_t k = 0; k < keys.count(); ++k)
      half_width[k] = half_width_at(p, std::abs(y - keys.positions[k] / p.grid_width));
    // A neighborhood is symmetric: here the tile's lanes are keys, and its rows are adjacent queries.
    fill_multiplicity(out + q * kLanes, run, static_cast<int32_t>(x), column, half_width,
                      static_cast<float>(multiplicity[0]), static_cast<float>(multiplicity[1]));
    q += run;
  }
  return {out, multiplicity[0]};
}

// A tile of at most kLanes queries, and where on the grid they are if there is a neighborhood.
struct QueryTile : PositionBlock {
  QueryTile(const PositionBlock& block, int64_t grid_width) : PositionBlock(block) {
    for (int64_t q = 0; q < count() && grid_width > 0; ++q) {
      row[q] = static_cast<int32_t>(positions[q] / grid_width);
      column[q] = static_cast<int32_t>(positions[q] % grid_width);
    }
  }

  alignas(64) int32_t column[kLanes] = {};
  int32_t row[kLanes] = {};
};

inline std::vector<QueryTile> query_tiles(const Problem& p) {
  std::vector<QueryTile> tiles;
  for (const PositionBlock& block : position_blocks(p.queries, p.grid_width, kLanes))
    tiles.emplace_back(block, p.grid_width);
  return tiles;
}

// How many keys of a slot are inside a query's neighborhood, at most.
inline int64_t keys_in_neighborhood(const Problem& p) {
  if (p.grid_width == 0) return p.positions;
  int64_t keys = 0;
  for (size_t d = 0; d < p.half_widths.size(); ++d) keys += (d == 0 ? 1 : 2) * (2 * p.half_widths[d] + 1);
  return std::min(keys, p.positions);
}

// Iterates `count` tiles of queries over the keys of one slot that count for any of their queries: calls
// load(first, count) for a run of keys, then take(tile, first, rows) for parts of it, at most kRows keys of one grid
// row (without a neighborhood: of the slot).
template <typename Load, typename Take>
void walk_keys(const Problem& p, const QueryTile* tiles, int64_t count, const int64_t* multiplicity, Load load,
               Take take) {
  if (multiplicity[0] == 0 && (p.grid_width == 0 || multiplicity[1] == 0)) return;
  if (p.grid_width == 0) {
    for (int64_t m = 0; m < p.positions; m += kRows) {
      const int64_t rows = std::min(kRows, p.positions - m);
      load(m, rows);
      for (int64_t i = 0; i < count; ++i) take(i, m, rows);
    }
    return;
  }
  std::vector<int64_t> first(count), last(count);
  for (int64_t y = 0; y < p.positions / p.grid_width; ++y) {
    int64_t left = p.grid_width, right = -1;
    for (int64_t i = 0; i < count; ++i) {
      first[i] = 0, last[i] = p.grid_width - 1;
      if (multiplicity[1] == 0) {
        const int64_t half_width = half_width_at(p, std::max<int64_t>({0, tiles[i].top - y, y - tiles[i].bottom}));
        first[i] = std::max<int64_t>(0, tiles[i].left - half_width);
        last[i] = half_width < 0 ? -1 : std::min(last[i], tiles[i].right + half_width);
      }
      if (last[i] < 0) continue;
      left = std::min(left, first[i]), right = std::max(right, last[i]);
    }
    if (right < 0) continue;
    load(y * p.grid_width + left, right - left + 1);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t x = first[i]; x <= last[i]; x += kRows)
        take(i, y * p.grid_width + x, std::min(kRows, last[i] - x + 1));
  }
}

// Multiplicity [rows][kLanes] of keys first .. first + rows - 1, of one grid row, for each query of a tile, in a slot
// of that multiplicity [2]. `out` has room for it.
inline TileMultiplicity tile_multiplicity(const Problem& p, const QueryTile& tile, int64_t first, int64_t rows,
                                          const int64_t* multiplicity, float* out) {
  if (!is_restricted(p, multiplicity)) return {nullptr, multiplicity[0]};
  alignas(64) int32_t half_width[kLanes];
  const int64_t y = first / p.grid_width;
  for (int64_t q = 0; q < kLanes; ++q) half_width[q] = half_width_at(p, std::abs(y - tile.row[q]));
  fill_multiplicity(out, rows, static_cast<int32_t>(first - y * p.grid_width), tile.column, half_width,
                    static_cast<float>(multiplicity[0]), static_cast<float>(multiplicity[1]));
  return {out, multiplicity[0]};
}

// The multiplicity of one key for one query of a tile.
inline int64_t multiplicity_of(const Problem& p, const QueryTile& tile, int64_t q, int64_t key,
                               const int64_t* multiplicity) {
  if (!is_restricted(p, multiplicity)) return multiplicity[0];
  const int64_t dy = std::abs(key / p.grid_width - tile.row[q]), dx = std::abs(key % p.grid_width - tile.column[q]);
  return multiplicity[dx <= half_width_at(p, dy) ? 0 : 1];
}

}  // namespace timecycle
