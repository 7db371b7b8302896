// What column_epilogue.cpp and byte_epilogue.cpp share: inlined into loops compiled for several instruction sets.
#pragma once

#include <cstdint>
#include <cstring>

#include "column_epilogue.h"

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

// One newcomer into list q; every element looks at itself and the one before it, so a step of the list is one vector.
inline __attribute__((always_inline)) void insert(const SortedLists& lists, int64_t q, float value, int32_t index) {
  constexpr int64_t kStep = SortedLists::kStep;
  float* values = lists.values + lists.begin(q);
  int32_t* indices = lists.indices + lists.begin(q);
  for (int64_t first = lists.length - kStep; first >= 0; first -= kStep) {
    float moved[kStep];
    int32_t moved_index[kStep];
    for (int64_t j = 0; j < kStep; ++j) {
      const float here = values[first + j], before = values[first + j - 1];
      moved[j] = here >= value ? here : before >= value ? value : before;
      moved_index[j] = here >= value ? indices[first + j] : before >= value ? index : indices[first + j - 1];
    }
    const bool ends_here = values[first - 1] >= value;
    std::memcpy(values + first, moved, sizeof(moved));
    std::memcpy(indices + first, moved_index, sizeof(moved_index));
    if (ends_here) break;
  }
  lists.worst[q] = values[lists.k - 1];
}

}  // namespace timecycle
