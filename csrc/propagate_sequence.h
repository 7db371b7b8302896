// propagate_sequence: labels carried through a whole video, one algorithm for CPU threads and for a GPU's grid.
// Letters as in timecycle/ops.
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
  const int64_t* indices;  // [B, N, K]: t * N + m, -1 for none
  const int64_t* frames;   // [B, T]: slot t of target b carries label map frames[b, t], -1 for none
  const int64_t* targets;  // [B]: the label map that target b becomes; not among frames[b]
  float* labels;           // [G, N, L], read and written
  // With `rescale` sums are stored as they are and scaled where they are read, so that one barrier a target is enough.
  uint32_t* extremes;    // [B, L, 2]: least and largest sum, by `in_order`; begins as all ones and zero
  int32_t* written;      // [G]: the target that a map was last written by; begins as -1
  int64_t maps;          // G
  int64_t target_count;  // B
  int64_t positions;     // N
  int64_t kept;          // K
  int64_t slots;         // T; T * N < 2^32
  int64_t classes;       // L
  bool rescale;
};

// Whole numbers that compare as the floats do.
TIMECYCLE_HOST_DEVICE inline uint32_t in_order(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

TIMECYCLE_HOST_DEVICE inline float from_order(uint32_t ordered) {
  const uint32_t bits = ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// A sum of class l in a map last written by `target`, scaled to [0, 1] over its map; a constant class is 0.
TIMECYCLE_HOST_DEVICE inline float rescaled(const Sequence& call, float sum, int64_t target, int64_t l) {
  const uint32_t* extremes = call.extremes + (target * call.classes + l) * 2;
  const float least = from_order(extremes[0]), range = from_order(extremes[1]) - least;
  return range > 0 ? (sum - least) / range : 0.0f;
}

// Run by every thread of a team: `team.group()` of `team.groups()` groups of Team::kLanes threads, `team.lane()` of
// them. barrier() waits for all threads and makes their writes seen; lower and raise move a number to that of any lane.
template <typename Team>
TIMECYCLE_HOST_DEVICE void propagate_sequence(const Sequence& call, Team& team) {
  const int64_t chunks = (call.positions + Team::kLanes - 1) / Team::kLanes;
  for (int64_t b = 0; b < call.target_count; ++b) {
    const int64_t map = call.targets[b];
    // Lanes are neighbouring positions of one class, so that extremes need one atomic a group.
    for (int64_t item = team.group(); item < chunks * call.classes; item += team.groups()) {
      const int64_t l = item / chunks, n = item % chunks * Team::kLanes + team.lane();
      float sum = 0;
      if (n < call.positions) {
        const int64_t row = (b * call.positions + n) * call.kept;
        for (int64_t k = 0; k < call.kept; ++k) {
          const int64_t index = call.indices[row + k];
          if (index < 0) continue;
          // 32 bits: a GPU divides 64 some five times slower.
          const uint32_t place = static_cast<uint32_t>(index), wide = static_cast<uint32_t>(call.positions);
          const int64_t source = call.frames[b * call.slots + place / wide];
          if (source < 0) continue;
          float label = call.labels[(source * call.positions + place % wide) * call.classes + l];
          if (call.rescale && call.written[source] >= 0) label = rescaled(call, label, call.written[source], l);
          sum += call.weights[row + k] * label;
        }
        call.labels[(map * call.positions + n) * call.classes + l] = sum;
      }
      if (call.rescale) {
        const bool exists = n < call.positions;
        uint32_t* extremes = call.extremes + (b * call.classes + l) * 2;
        team.lower(extremes, exists ? in_order(sum) : 0xffffffffu);
        team.raise(extremes + 1, exists ? in_order(sum) : 0u);
      }
    }
    if (team.group() == 0 && team.lane() == 0) call.written[map] = static_cast<int32_t>(b);
    team.barrier();
  }
  if (!call.rescale) return;
  const int64_t each = call.positions * call.classes, threads = team.groups() * Team::kLanes;
  for (int64_t g = 0; g < call.maps; ++g) {
    if (call.written[g] < 0) continue;
    for (int64_t at = team.group() * Team::kLanes + team.lane(); at < each; at += threads) {
      float& sum = call.labels[g * each + at];
      sum = rescaled(call, sum, call.written[g], at % call.classes);
    }
  }
}

void propagate_sequence_cpu(const Sequence& call, int threads);

}  // namespace timecycle
