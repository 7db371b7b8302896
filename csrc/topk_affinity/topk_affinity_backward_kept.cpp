// softmax_over="topk": the gradient of the logits is there for the kept keys alone. Queries gather rows of the bank;
// rows of the bank gather queries, in the order that a counting sort by row gives. No row is written by two threads,
// and each is summed in float and written once.
#include <ATen/Parallel.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "simd/row_arithmetic.h"
#include "topk_affinity/topk_affinity_backward.h"

namespace timecycle {
namespace {

constexpr int64_t kEntries = int64_t{1} << 17;  // sorted at once (2 MB), unless a single row has more

struct Entry {
  int64_t query;  // b * N + n
  float factor;
};

template <typename Feature>
void queries_gather(const TopkAffinity& s, const TopkAffinityGradient& in, const KeptKeys& kept, const Feature* bank,
                    Feature* d_query) {
  at::parallel_for(0, s.targets * s.queries, 64, [&](int64_t begin, int64_t end) {
    std::vector<float> sum(s.channels);
    for (int64_t row = begin; row < end; ++row) {
      std::fill(sum.begin(), sum.end(), 0.0f);
      const int64_t b = row / s.queries;
      for (int64_t slot = 0; slot < s.slots; ++slot) {
        const int64_t frame = s.frames[b * s.slots + slot];
        if (frame < 0) continue;
        const Feature* keys = bank + frame * s.positions * s.channels;
        kept.of_slot(b, row % s.queries, slot, [&](int64_t position, float factor) {
          add_scaled(factor, keys + position * s.channels, s.channels, sum.data());
        });
      }
      convert(sum.data(), s.channels, d_query + row * s.channels);
    }
  });
}

// Calls found(row of the frame, entry) for every kept key of the slots that hold a frame.
template <typename Found>
void for_each_entry(const TopkAffinity& s, const KeptKeys& kept, const std::vector<Use>& uses, Found found) {
  for (const Use& use : uses)
    for (int64_t n = 0; n < s.queries; ++n)
      kept.of_slot(use.target, n, use.slot,
                   [&](int64_t position, float factor) { found(position, Entry{use.target * s.queries + n, factor}); });
}

// The gradient of rows first .. last - 1 of a frame: d_keys [M][D]. `starts` [M + 1] counts the entries before each
// row.
template <typename Feature>
void rows_gather(const TopkAffinity& s, const KeptKeys& kept, const std::vector<Use>& uses, int64_t first, int64_t last,
                 const std::vector<int64_t>& starts, const Feature* query, Feature* d_keys) {
  std::vector<Entry> sorted(starts[last] - starts[first]);
  std::vector<int64_t> next(starts.begin() + first, starts.begin() + last);
  for_each_entry(s, kept, uses, [&](int64_t position, const Entry& entry) {
    if (position >= first && position < last) sorted[next[position - first]++ - starts[first]] = entry;
  });
  at::parallel_for(first, last, 64, [&](int64_t begin, int64_t end) {
    std::vector<float> sum(s.channels);
    for (int64_t row = begin; row < end; ++row) {
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (int64_t i = starts[row] - starts[first]; i < starts[row + 1] - starts[first]; ++i)
        add_scaled(sorted[i].factor, query + sorted[i].query * s.channels, s.channels, sum.data());
      convert(sum.data(), s.channels, d_keys + row * s.channels);
    }
  });
}

}  // namespace

template <typename Feature>
void gradient_of_kept(const TopkAffinity& s, const TopkAffinityGradient& in, const KeptKeys& kept, const Feature* query,
                      const Feature* bank, Feature* d_query, Feature* d_bank) {
  queries_gather(s, in, kept, bank, d_query);
  const std::vector<std::vector<Use>> uses = uses_of(s);
  for (int64_t frame = 0; frame < s.bank_frames; ++frame) {
    std::vector<int64_t> starts(s.positions + 1, 0);
    for_each_entry(s, kept, uses[frame], [&](int64_t position, const Entry&) { ++starts[position + 1]; });
    std::partial_sum(starts.begin(), starts.end(), starts.begin());
    for (int64_t first = 0, last; first < s.positions; first = last) {
      for (last = first + 1; last < s.positions && starts[last + 1] - starts[first] <= kEntries;) ++last;
      rows_gather(s, kept, uses[frame], first, last, starts, query, d_bank + frame * s.positions * s.channels);
    }
  }
}

template void gradient_of_kept(const TopkAffinity&, const TopkAffinityGradient&, const KeptKeys&, const float*,
                               const float*, float*, float*);
template void gradient_of_kept(const TopkAffinity&, const TopkAffinityGradient&, const KeptKeys&, const c10::BFloat16*,
                               const c10::BFloat16*, c10::BFloat16*, c10::BFloat16*);
template void gradient_of_kept(const TopkAffinity&, const TopkAffinityGradient&, const KeptKeys&, const c10::Half*,
                               const c10::Half*, c10::Half*, c10::Half*);

}  // namespace timecycle
