// topk_affinity on the CPU: one pass over the context, tile by tile, no matrix.
//
// A work item is kLanes queries of one target. Its queries are transposed once; then for every slot and every kRows
// keys one small product leaves a [keys][queries] tile in the first-level cache, from which column_epilogue.h takes
// maxima, sums and the k largest before the next product overwrites it. Extra memory: a few hundred KB a thread.
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "column_epilogue.h"
#include "topk_affinity.h"

namespace timecycle {
namespace {

constexpr int64_t kChunk = 128;  // channels summed in one chain
constexpr int64_t kGroup = 4;    // tiles of queries that share a tile of keys
constexpr float kNone = -std::numeric_limits<float>::infinity();

// The running state of a tile of queries: k largest dot products with their indices, and the softmax denominator.
struct Running {
  explicit Running(int64_t kept) : kept(kept), values(kLanes * kept), indices(kLanes * kept) { reset(); }

  void reset() {
    std::fill(values.begin(), values.end(), kNone);
    std::fill(indices.begin(), indices.end(), -1);
    std::fill_n(largest, kLanes, kNone);
    std::fill_n(sum, kLanes, 0.0f);
  }

  // Takes in a tile [rows][kLanes] of dot products whose first key has the given index.
  void take(const float* tile, int64_t rows, int64_t first_index, int64_t queries, bool denominator, float scale) {
    float tile_largest[kLanes];
    column_maximum(tile, rows, tile_largest);
    for (int64_t q = 0; q < queries; ++q)
      if (tile_largest[q] > values[q * kept + kept - 1])
        insert_column(tile, rows, q, first_index, kept, &values[q * kept], &indices[q * kept]);
    if (!denominator) return;
    for (int64_t q = 0; q < kLanes; ++q) {
      if (!(tile_largest[q] > largest[q])) continue;
      sum[q] *= std::exp((largest[q] - tile_largest[q]) * scale);  // exp(-inf) = 0 at the first tile
      largest[q] = tile_largest[q];
    }
    column_exp_sum(tile, rows, largest, scale, sum);
  }

  // Weights and indices of query q, times `share`; an entry that does not exist is index -1 with weight 0.
  void write(int64_t q, bool all, float scale, float share, float* weights, int64_t* out) const {
    const float* row = &values[q * kept];
    float total = sum[q];
    if (!all) {
      total = 0.0f;
      for (int64_t i = 0; i < kept && row[i] > kNone; ++i) total += std::exp((row[i] - row[0]) * scale);
    }
    for (int64_t i = 0; i < kept; ++i) {
      out[i] = indices[q * kept + i];
      // The list is sorted, so its first value is the largest of all.
      weights[i] = out[i] < 0 ? 0.0f : std::exp((row[i] - row[0]) * scale) / total * share;
    }
  }

  int64_t kept;
  std::vector<float> values;
  std::vector<int64_t> indices;
  alignas(64) float largest[kLanes];
  alignas(64) float sum[kLanes];
};

// A row of keys as floats: the bank itself where it is float, else a converted copy of the tile.
const float* as_float(const float* keys, int64_t, std::vector<float>&) { return keys; }

template <typename Feature>
const float* as_float(const Feature* keys, int64_t count, std::vector<float>& copy) {
  copy.resize(count);
  std::transform(keys, keys + count, copy.begin(), [](Feature value) { return static_cast<float>(value); });
  return copy.data();
}

// tile [rows][kLanes] = keys [rows][D] times queries [D][kLanes], in chunks of channels that are summed apart: one long
// chain of additions would round off twice as much, and near-ties at the k-th place would fall the other way.
void product(int64_t rows, int64_t channels, const float* keys, const float* queries, float* tile, float* partial) {
  for (int64_t d = 0; d < channels; d += kChunk) {
    float* out = d == 0 ? tile : partial;
    at::native::cpublas::brgemm(rows, kLanes, std::min(kChunk, channels - d), channels, kLanes, kLanes, /*add_C=*/false,
                                keys + d, queries + d * kLanes, out);
    if (d > 0) add_tile(partial, rows, tile);
  }
}

// One work item: up to kGroup tiles of queries of one target, which take turns on each tile of keys while it is in the
// second-level cache.
template <typename Feature>
void run_item(const TopkAffinity& s, const Feature* query, const Feature* bank, const int64_t* frames, int64_t queries,
              float* weights, int64_t* indices) {
  const int64_t row_kept = s.joint ? s.kept : s.slots * s.kept;
  const int64_t group = (queries + kLanes - 1) / kLanes;
  std::vector<float> panels(group * s.channels * kLanes, 0.0f);  // [group][D][kLanes]; unused lanes stay 0
  for (int64_t q = 0; q < queries; ++q)
    for (int64_t d = 0; d < s.channels; ++d)
      panels[(q / kLanes * s.channels + d) * kLanes + q % kLanes] = static_cast<float>(query[q * s.channels + d]);
  const int64_t filled = std::count_if(frames, frames + s.slots, [](int64_t frame) { return frame >= 0; });
  const float share = s.joint ? 1.0f : 1.0f / static_cast<float>(std::max<int64_t>(filled, 1));
  std::vector<float> tile(kRows * kLanes), partial(kRows * kLanes), copy;
  std::vector<Running> running(group, Running(s.kept));
  for (int64_t slot = 0; slot < s.slots; ++slot) {
    for (int64_t m = 0; frames[slot] >= 0 && m < s.positions; m += kRows) {
      const int64_t rows = std::min(kRows, s.positions - m);
      const float* keys = as_float(bank + (frames[slot] * s.positions + m) * s.channels, rows * s.channels, copy);
      for (int64_t g = 0; g < group; ++g) {
        product(rows, s.channels, keys, &panels[g * s.channels * kLanes], tile.data(), partial.data());
        running[g].take(tile.data(), rows, slot * s.positions + m, std::min(kLanes, queries - g * kLanes), s.all,
                        s.scale);
      }
    }
    if (s.joint && slot + 1 < s.slots) continue;
    const int64_t first = s.joint ? 0 : slot * s.kept;
    for (int64_t q = 0; q < queries; ++q)
      running[q / kLanes].write(q % kLanes, s.all, s.scale, share, weights + q * row_kept + first,
                                indices + q * row_kept + first);
    for (Running& state : running) state.reset();
  }
}

}  // namespace

template <typename Feature>
void topk_affinity_cpu(const TopkAffinity& s, const Feature* query, const Feature* bank, const int64_t* frames,
                       float* weights, int64_t* indices) {
  const int64_t row_kept = s.joint ? s.kept : s.slots * s.kept;
  const int64_t tiles = (s.queries + kLanes - 1) / kLanes;
  // As few rounds of all threads as the group size allows, then groups as even as possible.
  const int64_t threads = at::get_num_threads();
  const int64_t rounds = std::max<int64_t>(1, (s.targets * tiles + threads * kGroup - 1) / (threads * kGroup));
  const int64_t items = std::min(tiles, std::max<int64_t>(1, (rounds * threads + s.targets - 1) / s.targets));
  at::parallel_for(0, s.targets * items, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t target = item / items, part = item % items;
      const int64_t first = part * tiles / items * kLanes;
      const int64_t last = std::min(s.queries, (part + 1) * tiles / items * kLanes);
      const int64_t row = target * s.queries + first;
      run_item(s, query + row * s.channels, bank, frames + target * s.slots, last - first, weights + row * row_kept,
               indices + row * row_kept);
    }
    at::native::cpublas::brgemm_release();
  });
}

template void topk_affinity_cpu(const TopkAffinity&, const float*, const float*, const int64_t*, float*, int64_t*);
template void topk_affinity_cpu(const TopkAffinity&, const c10::BFloat16*, const c10::BFloat16*, const int64_t*, float*,
                                int64_t*);
template void topk_affinity_cpu(const TopkAffinity&, const c10::Half*, const c10::Half*, const int64_t*, float*,
                                int64_t*);

}  // namespace timecycle
