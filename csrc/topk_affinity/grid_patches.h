// Positions of a frame in small groups, and which groups see each other under a neighborhood.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "simd/column_epilogue.h"
#include "topk_affinity/topk_affinity.h"

namespace timecycle {

// A run of positions, or under a neighborhood a rectangle of the grid, row by row.
struct Patch {
  std::vector<int64_t> positions;
  int64_t top = 0, bottom = 0, left = 0, right = 0;  // of the rectangle

  int64_t count() const { return static_cast<int64_t>(positions.size()); }
};

// All `positions` of a frame, `size` to a patch; width is that of the neighborhood's grid, 0 without a neighborhood.
inline std::vector<Patch> patches_of(int64_t positions, int64_t width, int64_t size) {
  constexpr int64_t kTall = 8;
  std::vector<Patch> patches;
  if (width == 0) {
    for (int64_t first = 0; first < positions; first += size) {
      Patch& patch = patches.emplace_back();
      for (int64_t p = first; p < std::min(first + size, positions); ++p) patch.positions.push_back(p);
    }
    return patches;
  }
  const int64_t height = positions / width, wide = size / kTall;
  for (int64_t top = 0; top < height; top += kTall)
    for (int64_t left = 0; left < width; left += wide) {
      Patch& patch = patches.emplace_back();
      patch.top = top, patch.bottom = std::min(top + kTall, height) - 1;
      patch.left = left, patch.right = std::min(left + wide, width) - 1;
      for (int64_t y = top; y <= patch.bottom; ++y)
        for (int64_t x = left; x <= patch.right; ++x) patch.positions.push_back(y * width + x);
    }
  return patches;
}

// How far a query may look aside in a row this far away; -1 for not at all.
inline int32_t half_width_at(const TopkAffinity& s, int64_t distance) {
  return distance < static_cast<int64_t>(s.half_widths.size()) ? static_cast<int32_t>(s.half_widths[distance]) : -1;
}

// Whether a slot's keys count differently inside and outside the neighborhood.
inline bool restricted(const TopkAffinity& s, const int64_t* multiplicity) {
  return s.grid_width > 0 && multiplicity[0] != multiplicity[1];
}

// Whether any query of a patch counts any key of another in a slot with these multiplicity [2].
inline bool sees(const TopkAffinity& s, const Patch& queries, const Patch& keys, const int64_t* multiplicity) {
  if (s.grid_width == 0 || multiplicity[1] > 0) return multiplicity[0] > 0 || (s.grid_width > 0 && multiplicity[1] > 0);
  const int64_t rows = std::max<int64_t>({0, queries.top - keys.bottom, keys.top - queries.bottom});
  const int64_t columns = std::max<int64_t>({0, queries.left - keys.right, keys.left - queries.right});
  return multiplicity[0] > 0 && rows < static_cast<int64_t>(s.half_widths.size()) && columns <= s.half_widths[rows];
}

// How often the keys of a patch count for `count` queries of another, from the `first` on: counts [count][kLanes].
inline void count_patch(const TopkAffinity& s, const Patch& queries, int64_t first, int64_t count, const Patch& keys,
                        const int64_t* multiplicity, float* counts) {
  alignas(64) int32_t column[kLanes] = {}, allowed[kLanes] = {};
  for (int64_t k = 0; k < keys.count(); ++k) column[k] = static_cast<int32_t>(keys.positions[k] % s.grid_width);
  for (int64_t q = 0; q < count;) {
    const int64_t y = queries.positions[first + q] / s.grid_width, x = queries.positions[first + q] % s.grid_width;
    const int64_t run = std::min(count - q, queries.right + 1 - x);
    for (int64_t k = 0; k < keys.count(); ++k)
      allowed[k] = half_width_at(s, std::abs(y - keys.positions[k] / s.grid_width));
    // A neighborhood is symmetric: here the tile's lanes are keys, and its rows queries side by side.
    count_row(counts + q * kLanes, run, static_cast<int32_t>(x), column, allowed, static_cast<float>(multiplicity[0]),
              static_cast<float>(multiplicity[1]));
    q += run;
  }
}

}  // namespace timecycle
