// topk_affinity's backward pass for softmax_over "all": three products of the forward's size - the logits again, then
// both gradients - without materializing more of the affinity matrix than a tile per thread.
//
// A frame of the bank is processed in chunks of keys, each against all queries of all slots that hold the frame.
// Threads divide the queries into strips: each sums the chunk's gradient over its own strips, and these sums are added
// in the order of the threads, so that results are reproducible with a fixed number of threads.
#include <ATen/Parallel.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "sizes.h"
#include "topk_affinity/panels.h"
#include "topk_affinity/topk_affinity_backward_strip.h"

namespace timecycle {
namespace {

constexpr int64_t kScratch = int64_t{9} << 18;  // bytes for a chunk of keys and its gradients

// The sums that become d_query [B, N, D]: held there for float, and their upper halves for 16-bit types (rows.h).
template <typename Feature>
class QuerySums {
 public:
  QuerySums(const Problem& p, Feature* out)
      : channels_(p.channels),
        count_(checked_product({p.targets, p.queries, p.channels})),
        out_(out),
        lower_(std::is_same_v<Feature, float> ? 0 : count_, 0) {
    std::fill_n(out, count_, Feature(0.0f));
  }

  void add(int64_t row, const float* sum) {
    if constexpr (std::is_same_v<Feature, float>)
      add_scaled(1.0f, sum, channels_, out_ + row * channels_);
    else
      add_to_split(sum, channels_, out_ + row * channels_, &lower_[row * channels_]);
  }

  void finish() {
    if constexpr (!std::is_same_v<Feature, float>)
      at::parallel_for(0, count_, 1 << 16,
                       [&](int64_t begin, int64_t end) { round_split(end - begin, out_ + begin, &lower_[begin]); });
  }

 private:
  int64_t channels_, count_;
  Feature* out_;
  std::vector<uint16_t> lower_;
};

// The state that threads share, and the loops over chunks and strips.
template <typename Feature, typename Panel>
class Gradient {
 public:
  Gradient(const Problem& p, const TopkAffinityGradient& in, const KeptKeys& kept, const Feature* query,
           Feature* d_query)
      : p_(p),
        query_(query),
        d_query_(d_query),
        sums_(p, d_query),
        parts_(at::get_num_threads()),
        // With a neighborhood, small squares of queries have fewer keys outside of it; else longer strips are faster.
        strips_(position_blocks(p.queries, p.grid_width, p.grid_width > 0 ? kLanes : even_strip())),
        blocks_(position_blocks(p.positions, p.grid_width, kLanes)),
        place_(p.positions),
        most_(blocks_in_a_chunk()),
        chunk_(p, blocks_, most_),
        workers_(parts_, Strip<Feature, Panel>(p, in, kept, place_)),
        d_keys_(checked_product({parts_, most_, kLanes, p.channels})),
        d_strips_(used_in_place<Feature>(p) ? 0 : checked_product({parts_, kStrip, p.channels})) {
    for (size_t block = 0; block < blocks_.size(); ++block)
      for (int64_t k = 0; k < blocks_[block].count(); ++k)
        place_[blocks_[block].positions[k]] = static_cast<int32_t>(block * kLanes + k);
  }

  // Writes d_keys [M][D] of a frame, from its keys [M][D] and the slots that hold it.
  void frame(const Feature* keys, const std::vector<SlotOfTarget>& slots, Feature* d_keys) {
    const int64_t count = static_cast<int64_t>(blocks_.size()),
                  chunks = (count + most_ - 1) / std::max<int64_t>(1, most_);
    for (int64_t c = 0; c < chunks; ++c) {
      chunk_.load(keys, c * count / chunks, (c + 1) * count / chunks);
      at::parallel_for(0, parts_, 1, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part) take_part(part, slots);
        at::native::cpublas::brgemm_release(true);
      });
      at::parallel_for(chunk_.first(), chunk_.last(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) write_keys(block, d_keys);
      });
    }
  }

  void finish() { sums_.finish(); }

 private:
  // The longest strip, up to kStrip, with which every thread gets the same number of strips.
  int64_t even_strip() const {
    const int64_t rounds = std::max<int64_t>(1, (p_.queries + parts_ * kStrip - 1) / (parts_ * kStrip));
    return std::max<int64_t>(1, (p_.queries + parts_ * rounds - 1) / (parts_ * rounds));
  }

  int64_t blocks_in_a_chunk() const {
    const int64_t copies = used_in_place<Feature>(p_) ? 1 : 2;
    const int64_t bytes =
        kLanes * p_.channels * (parts_ * 4 + copies * static_cast<int64_t>(sizeof(typename Panel::Element)));
    return std::min<int64_t>(blocks_.size(), std::max<int64_t>(2, kScratch / std::max<int64_t>(1, bytes)));
  }

  float* part_of_keys(int64_t part) { return d_keys_.data() + part * most_ * kLanes * p_.channels; }

  // Every parts-th strip against the chunk: with a neighborhood the strips that see the chunk are adjacent, so that all
  // threads have some of them.
  void take_part(int64_t part, const std::vector<SlotOfTarget>& slots) {
    std::fill_n(part_of_keys(part), most_ * kLanes * p_.channels, 0.0f);
    const int64_t count = static_cast<int64_t>(strips_.size());
    for (int64_t item = part; item < p_.targets * count; item += parts_) {
      const int64_t b = item / count;
      const PositionBlock& queries = strips_[item % count];
      float* d_queries = nullptr;
      for (const SlotOfTarget& at : slots) {
        if (at.target != b || !sees_chunk(queries, at)) continue;
        if (d_queries == nullptr) {
          workers_[part].load(b, queries, query_ + b * p_.queries * p_.channels);
          d_queries = start_strip(part, b, queries);
        }
        workers_[part].pass(chunk_, at.slot, part_of_keys(part), d_queries);
      }
      if (d_queries == nullptr || d_strips_.empty()) continue;
      for (int64_t q = 0; q < queries.count(); ++q)
        sums_.add(b * p_.queries + queries.positions[q], d_queries + q * p_.channels);
    }
  }

  bool sees_chunk(const PositionBlock& queries, const SlotOfTarget& at) const {
    const int64_t* multiplicity = p_.multiplicity + (at.target * p_.slots + at.slot) * 2;
    for (int64_t block = chunk_.first(); block < chunk_.last(); ++block)
      if (sees(p_, queries, blocks_[block], multiplicity)) return true;
    return false;
  }

  // Where the gradient of a strip's queries is summed: in the output if used_in_place, else in a zeroed buffer.
  float* start_strip(int64_t part, int64_t b, const PositionBlock& queries) {
    if constexpr (std::is_same_v<Feature, float>)
      if (d_strips_.empty()) return d_query_ + (b * p_.queries + queries.positions[0]) * p_.channels;
    float* sum = d_strips_.data() + part * kStrip * p_.channels;
    std::fill_n(sum, queries.count() * p_.channels, 0.0f);
    return sum;
  }

  void write_keys(int64_t block, Feature* d_keys) {
    for (int64_t k = 0; k < blocks_[block].count(); ++k) {
      const int64_t row = (chunk_.offset(block) + k) * p_.channels;
      for (int64_t part = 1; part < parts_; ++part)
        add_scaled(1.0f, part_of_keys(part) + row, p_.channels, part_of_keys(0) + row);
      convert(part_of_keys(0) + row, p_.channels, d_keys + blocks_[block].positions[k] * p_.channels);
    }
  }

  const Problem& p_;
  const Feature* query_;
  Feature* d_query_;
  QuerySums<Feature> sums_;
  int64_t parts_;
  std::vector<PositionBlock> strips_, blocks_;
  std::vector<int32_t> place_;
  int64_t most_;  // blocks in a chunk
  Chunk<Feature, Panel> chunk_;
  std::vector<Strip<Feature, Panel>> workers_;  // [parts]
  std::vector<float> d_keys_;                   // [parts][rows of a chunk][D]
  std::vector<float> d_strips_;                 // [parts][kStrip][D]
};

}  // namespace

template <typename Feature>
void topk_affinity_backward_all(const Problem& p, const TopkAffinityGradient& in, const KeptKeys& kept,
                                const Feature* query, const Feature* bank, Feature* d_query, Feature* d_bank) {
  with_panel<Feature>(p.channels, [&]<typename Panel>() {
    Gradient<Feature, Panel> gradient(p, in, kept, query, d_query);
    const std::vector<std::vector<SlotOfTarget>> slots = slots_of_frames(p);
    const int64_t size = p.positions * p.channels;
    for (int64_t frame = 0; frame < p.bank_frames; ++frame) {
      if (slots[frame].empty())
        std::fill_n(d_bank + frame * size, size, Feature(0.0f));
      else
        gradient.frame(bank + frame * size, slots[frame], d_bank + frame * size);
    }
    gradient.finish();
  });
}

#define INSTANTIATE(Feature)                                                                             \
  template void topk_affinity_backward_all(const Problem&, const TopkAffinityGradient&, const KeptKeys&, \
                                           const Feature*, const Feature*, Feature*, Feature*);
INSTANTIATE(float)
INSTANTIATE(c10::BFloat16)
INSTANTIATE(c10::Half)
#undef INSTANTIATE

}  // namespace timecycle
