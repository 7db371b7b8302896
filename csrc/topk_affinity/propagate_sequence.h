// propagate_sequence: propagates labels through a whole video. One algorithm for CPU threads and for a GPU's grid.
// Letters of shapes as in timecycle/ops/propagate_sequence.py.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define TIMECYCLE_HOST_DEVICE __host__ __device__
#else
#define TIMECYCLE_HOST_DEVICE
#endif

namespace timecycle {

struct Sequence {
  const float* weights;    // [B, N, K]
  const int64_t* indices;  // [B, N, K]: t * N + m; ignored if outside the slots
  const int64_t* frames;   // [B, T]: the label map of slot t of target b, negative for none
  const int64_t* targets;  // [B]: the label map to write target b to, negative for none; not among frames[b]
  float* labels;           // [G, N, L], read and written
  uint32_t* extremes;      // [B, L, 2]: smallest and largest sum as sortable_bits; initially all ones, and zero
  int64_t target_count;    // B
  int64_t positions;       // N
  int64_t kept;            // K
  int64_t slots;           // T; T * N < 2^32
  int64_t classes;         // L
  bool rescale;
};

// Unsigned integers that compare as the floats do.
TIMECYCLE_HOST_DEVICE inline uint32_t sortable_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

TIMECYCLE_HOST_DEVICE inline float from_sortable_bits(uint32_t sortable) {
  const uint32_t bits = sortable & 0x80000000u ? sortable & 0x7fffffffu : ~sortable;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// Run by every thread of a team: thread `team.lane()` of group `team.group()`; there are `team.groups()` groups of
// Team::kLanes threads. barrier() waits for all threads and makes their writes visible; lower and raise are atomic
// minimum and maximum of all lanes' values. A thread processes Team::kClasses classes at a time.
template <typename Team>
TIMECYCLE_HOST_DEVICE void propagate_sequence(const Sequence& call, Team& team) {
  constexpr int64_t kClasses = Team::kClasses;
  const int64_t chunks = (call.positions + Team::kLanes - 1) / Team::kLanes;
  const int64_t items = chunks * ((call.classes + kClasses - 1) / kClasses);
  const uint64_t end = call.slots * call.positions;
  const int64_t map_size = call.positions * call.classes, threads = team.groups() * Team::kLanes;
  for (int64_t b = 0; b < call.target_count; ++b) {
    if (call.targets[b] < 0) continue;
    float* map = call.labels + call.targets[b] * map_size;
    uint32_t* extremes = call.extremes + b * call.classes * 2;
    // Lanes are neighboring positions of the same classes, so that extremes need one atomic per group.
    for (int64_t item = team.group(); item < items; item += team.groups()) {
      const int64_t first = item / chunks * kClasses, n = item % chunks * Team::kLanes + team.lane();
      const int64_t count = call.classes - first < kClasses ? call.classes - first : kClasses;
      const bool exists = n < call.positions;
      float sums[kClasses] = {};
      for (int64_t k = 0; k < (exists ? call.kept : 0); ++k) {
        const int64_t at = (b * call.positions + n) * call.kept + k, index = call.indices[at];
        if (static_cast<uint64_t>(index) >= end) continue;  // also if negative
        // 32-bit division: on a GPU some five times faster than 64-bit.
        const uint32_t place = static_cast<uint32_t>(index), wide = static_cast<uint32_t>(call.positions);
        const int64_t source = call.frames[b * call.slots + place / wide];
        if (source < 0) continue;
        const float* labels = call.labels + source * map_size + place % wide * call.classes + first;
        for (int64_t c = 0; c < count; ++c) sums[c] += call.weights[at] * labels[c];
      }
      for (int64_t c = 0; c < count; ++c) {
        if (exists) map[n * call.classes + first + c] = sums[c];
        if (!call.rescale) continue;
        team.lower(extremes + (first + c) * 2, exists ? sortable_bits(sums[c]) : 0xffffffffu);
        team.raise(extremes + (first + c) * 2 + 1, exists ? sortable_bits(sums[c]) : 0u);
      }
    }
    team.barrier();
    if (!call.rescale) continue;
    for (int64_t at = team.group() * Team::kLanes + team.lane(); at < map_size; at += threads) {
      const uint32_t* extreme = extremes + at % call.classes * 2;
      const float least = from_sortable_bits(extreme[0]), range = from_sortable_bits(extreme[1]) - least;
      map[at] = range > 0 ? (map[at] - least) / range : 0.0f;  // a constant class is 0
    }
    team.barrier();
  }
}

void propagate_sequence_cpu(const Sequence& call, int threads);

}  // namespace timecycle
