// topk_affinity's backward pass on the CPU: what both kinds of softmax share, and softmax_over "topk". For the latter
// only the logits of kept keys have a gradient: d_query gathers rows of the bank, and d_bank rows of the query, in the
// order of a counting sort by row. Each row is summed in float by one thread, and written once.
#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "simd/rows.h"
#include "sizes.h"
#include "topk_affinity/topk_affinity_backward.h"

namespace timecycle {

KeptKeys::KeptKeys(const Problem& p, const TopkAffinityGradient& in)
    : p_(p), in_(in), means_(checked_product({p.targets, p.queries, p.groups()})), filled_(p.targets, 1.0f) {
  for (int64_t b = 0; b < p_.targets && !p_.joint; ++b) {
    const int64_t* frames = p_.frames + b * p_.slots;
    filled_[b] = static_cast<float>(std::count_if(frames, frames + p_.slots, [](int64_t frame) { return frame >= 0; }));
  }
  at::parallel_for(0, static_cast<int64_t>(means_.size()), 4096, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      double sum = 0.0;
      for (int64_t i = row * in_.kept; i < (row + 1) * in_.kept; ++i)
        if (in_.indices[i] >= 0) sum += static_cast<double>(in_.weights[i]) * in_.gradient[i];
      means_[row] = static_cast<float>(sum * p_.softmax_scale);
    }
  });
}

std::vector<std::vector<SlotOfTarget>> slots_of_frames(const Problem& p) {
  std::vector<std::vector<SlotOfTarget>> slots(p.bank_frames);
  for (int64_t b = 0; b < p.targets; ++b)
    for (int64_t slot = 0; slot < p.slots; ++slot)
      if (p.frames[b * p.slots + slot] >= 0) slots[p.frames[b * p.slots + slot]].push_back({b, slot});
  return slots;
}

namespace {

constexpr int64_t kEntries = int64_t{1} << 17;  // sorted at a time (2 MB), unless a single row has more

struct Entry {
  int64_t query;  // b * N + n
  float factor;
};

template <typename Feature>
void gather_queries(const Problem& p, const TopkAffinityGradient& in, const KeptKeys& kept, const Feature* bank,
                    Feature* d_query) {
  at::parallel_for(0, p.targets * p.queries, 64, [&](int64_t begin, int64_t end) {
    std::vector<float> sum(p.channels);
    for (int64_t row = begin; row < end; ++row) {
      std::fill(sum.begin(), sum.end(), 0.0f);
      const int64_t b = row / p.queries;
      for (int64_t slot = 0; slot < p.slots; ++slot) {
        const int64_t frame = p.frames[b * p.slots + slot];
        if (frame < 0) continue;
        const Feature* keys = bank + frame * p.positions * p.channels;
        kept.for_each(b, row % p.queries, slot, [&](int64_t position, float factor) {
          add_scaled(factor, keys + position * p.channels, p.channels, sum.data());
        });
      }
      convert(sum.data(), p.channels, d_query + row * p.channels);
    }
  });
}

// Calls visit(row of the frame, entry) for every kept key of the slots that hold a frame.
template <typename Visit>
void for_each_entry(const Problem& p, const KeptKeys& kept, const std::vector<SlotOfTarget>& slots, Visit visit) {
  for (const SlotOfTarget& at : slots)
    for (int64_t n = 0; n < p.queries; ++n)
      kept.for_each(at.target, n, at.slot,
                    [&](int64_t position, float factor) { visit(position, Entry{at.target * p.queries + n, factor}); });
}

// The gradient of rows first .. last - 1 of a frame: d_keys [M][D]. `starts` [M + 1] counts the entries before each
// row.
template <typename Feature>
void gather_rows(const Problem& p, const KeptKeys& kept, const std::vector<SlotOfTarget>& slots, int64_t first,
                 int64_t last, const std::vector<int64_t>& starts, const Feature* query, Feature* d_keys) {
  std::vector<Entry> sorted(starts[last] - starts[first]);
  std::vector<int64_t> next(starts.begin() + first, starts.begin() + last);
  for_each_entry(p, kept, slots, [&](int64_t position, const Entry& entry) {
    if (position >= first && position < last) sorted[next[position - first]++ - starts[first]] = entry;
  });
  at::parallel_for(first, last, 64, [&](int64_t begin, int64_t end) {
    std::vector<float> sum(p.channels);
    for (int64_t row = begin; row < end; ++row) {
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (int64_t i = starts[row] - starts[first]; i < starts[row + 1] - starts[first]; ++i)
        add_scaled(sorted[i].factor, query + sorted[i].query * p.channels, p.channels, sum.data());
      convert(sum.data(), p.channels, d_keys + row * p.channels);
    }
  });
}

template <typename Feature>
void backward_topk(const Problem& p, const TopkAffinityGradient& in, const KeptKeys& kept, const Feature* query,
                   const Feature* bank, Feature* d_query, Feature* d_bank) {
  gather_queries(p, in, kept, bank, d_query);
  const std::vector<std::vector<SlotOfTarget>> slots = slots_of_frames(p);
  for (int64_t frame = 0; frame < p.bank_frames; ++frame) {
    std::vector<int64_t> starts(p.positions + 1, 0);
    for_each_entry(p, kept, slots[frame], [&](int64_t position, const Entry&) { ++starts[position + 1]; });
    std::partial_sum(starts.begin(), starts.end(), starts.begin());
    for (int64_t first = 0, last; first < p.positions; first = last) {
      for (last = first + 1; last < p.positions && starts[last + 1] - starts[first] <= kEntries;) ++last;
      gather_rows(p, kept, slots[frame], first, last, starts, query, d_bank + frame * p.positions * p.channels);
    }
  }
}

}  // namespace

template <typename Feature>
void topk_affinity_backward_cpu(const Problem& problem, const TopkAffinityGradient& in, Feature* d_query,
                                Feature* d_bank) {
  const KeptKeys kept(problem, in);
  const auto gradient = problem.softmax_over_all ? topk_affinity_backward_all<Feature> : backward_topk<Feature>;
  gradient(problem, in, kept, static_cast<const Feature*>(problem.query), static_cast<const Feature*>(problem.bank),
           d_query, d_bank);
}

template void topk_affinity_backward_cpu(const Problem&, const TopkAffinityGradient&, float*, float*);
template void topk_affinity_backward_cpu(const Problem&, const TopkAffinityGradient&, c10::BFloat16*, c10::BFloat16*);
template void topk_affinity_backward_cpu(const Problem&, const TopkAffinityGradient&, c10::Half*, c10::Half*);

}  // namespace timecycle
