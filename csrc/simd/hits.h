// What the loops over tiles share: inlined into loops compiled for several instruction sets.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd/column_epilogue.h"

namespace timecycle {

// Appends the lanes of a row that are marked, eight at a look.
inline __attribute__((always_inline)) int64_t append_marked(const uint8_t* marked, const float* values, int64_t row,
                                                            Hit* hits, int64_t count) {
  for (int64_t first = 0; first < kLanes; first += 8) {
    uint64_t eight;
    std::memcpy(&eight, marked + first, sizeof(eight));
    for (; eight != 0; eight &= eight - 1) {
      const int64_t q = first + __builtin_ctzll(eight) / 8;
      hits[count++] = {values[q], static_cast<int16_t>(row), static_cast<int16_t>(q)};
    }
  }
  return count;
}

// How often a key of a tile takes part for a query: what counts [rows][kLanes] says, or `every` without it.
inline __attribute__((always_inline)) int64_t times_counted(const float* counts, int64_t every, int64_t row,
                                                            int64_t q) {
  return counts ? static_cast<int64_t>(counts[row * kLanes + q]) : every;
}

// One newcomer into list q; every element looks at itself and the one before it, so a step of the list is one vector.
inline __attribute__((always_inline)) void insert(const SortedLists& lists, int64_t q, float value, int32_t index) {
  constexpr int64_t kStep = SortedLists::kStep;
  float* values = lists.values + lists.begin(q);
  int32_t* indices = lists.indices ? lists.indices + lists.begin(q) : nullptr;
  for (int64_t first = lists.length - kStep; first >= 0; first -= kStep) {
    const float* here = values + first;
    // Indices before values, which say where they go.
    if (indices) {
      int32_t moved[kStep];
      for (int64_t j = 0; j < kStep; ++j)
        moved[j] = here[j] >= value ? indices[first + j] : here[j - 1] >= value ? index : indices[first + j - 1];
      std::memcpy(indices + first, moved, sizeof(moved));
    }
    const bool ends_here = here[-1] >= value;
    float moved[kStep];
    for (int64_t j = 0; j < kStep; ++j)
      moved[j] = here[j] >= value ? here[j] : here[j - 1] >= value ? value : here[j - 1];
    std::memcpy(values + first, moved, sizeof(moved));
    if (ends_here) break;
  }
  lists.worst[q] = values[lists.k - 1];
}

}  // namespace timecycle
