// normalise="all": three products of the forward's size - the logits again, then both gradients - and of the matrix no
// more than a tile a thread.
//
// A frame of the bank is taken in chunks of keys; a chunk meets all queries of all slots that hold the frame. Threads
// share the queries: each sums the chunk's gradient for its own, and these sums are added in the order of the threads,
// so that the same call with as many threads gives the same bits. A strip's queries belong to one thread.
#include <ATen/Parallel.h>

#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "grid_patches.h"
#include "row_arithmetic.h"
#include "tile_product.h"
#include "topk_affinity_backward.h"

namespace timecycle {
namespace {

constexpr int64_t kStrip = 128;                 // queries that a thread takes at once
constexpr int64_t kRun = 4 * kLanes;            // keys that one product for their gradient takes at once
constexpr int64_t kScratch = int64_t{5} << 19;  // bytes for a chunk of keys and its gradients

int64_t even(int64_t count) { return count + count % 2; }

// C [M][N] += A [M][K] B [K][N]; the rows of A are `stride` apart. B of bfloat16 has rows in pairs: [K / 2][N][2],
// where K is made even: A and B have a 0 there.
void multiply_add(int64_t m, int64_t n, int64_t k, const float* a, int64_t stride, const float* b, float* c) {
  at::native::cpublas::brgemm(m, n, k, stride, n, n, /*add_C=*/true, a, b, c);
}

void multiply_add(int64_t m, int64_t n, int64_t k, const c10::BFloat16* a, int64_t stride, const c10::BFloat16* b,
                  float* c) {
  at::native::cpublas::brgemm(m, n, even(k), stride, n, n, /*add_C=*/true, a, b, c, /*is_vnni=*/true);
}

// The features of a patch as the right side B of multiply_add; an odd number is made even by a row of 0.
template <typename Feature>
void put_right(const Patch& patch, const Feature* features, int64_t channels, float* out) {
  for (int64_t i = 0; i < patch.count(); ++i)
    convert(features + patch.positions[i] * channels, channels, out + i * channels);
  if (patch.count() % 2) std::fill_n(out + patch.count() * channels, channels, 0.0f);
}

void put_right(const Patch& patch, const c10::BFloat16* features, int64_t channels, c10::BFloat16* out) {
  const std::vector<c10::BFloat16> zeros(patch.count() % 2 * channels);
  for (int64_t i = 0; i < patch.count(); i += 2)
    pair_rows(features + patch.positions[i] * channels,
              i + 1 < patch.count() ? features + patch.positions[i + 1] * channels : zeros.data(), channels,
              out + i * channels);
}

// Whether the floats of a patch are where they are needed: side by side, and floats.
template <typename Feature>
bool stays_in_place(const TopkAffinity& s) {
  return std::is_same_v<Feature, float> && s.width == 0;
}

// Some keys of a frame as both products want them; shared by the threads.
template <typename Feature, typename Panel>
class Chunk {
 public:
  using Element = typename Panel::Element;

  Chunk(const TopkAffinity& s, const std::vector<Patch>& blocks, int64_t most)
      : s_(s),
        blocks_(blocks),
        panels_(most, Panel(s.channels)),
        copy_(stays_in_place<Feature>(s) ? 0 : most * kLanes * s.channels) {}

  // Blocks first .. last - 1 of the keys [M][D] of a frame.
  void load(const Feature* keys, int64_t first, int64_t last) {
    first_ = first, last_ = last;
    offsets_.assign(1, 0);
    for (int64_t block = first; block < last; ++block) offsets_.push_back(offsets_.back() + even(rows(block)));
    right_ = copy_.data();
    if constexpr (std::is_same_v<Feature, float>)
      if (copy_.empty()) right_ = keys + blocks_[first].positions[0] * s_.channels;
    at::parallel_for(first, last, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        for (int64_t k = 0; k < rows(block); ++k)
          panels_[block - first].set(k, keys + blocks_[block].positions[k] * s_.channels);
        if (!copy_.empty()) put_right(blocks_[block], keys, s_.channels, &copy_[offset(block) * s_.channels]);
      }
    });
  }

  int64_t first() const { return first_; }
  int64_t last() const { return last_; }
  int64_t rows(int64_t block) const { return blocks_[block].count(); }
  int64_t offset(int64_t block) const { return offsets_[block - first_]; }  // row of the chunk where a block begins
  const Patch& patch(int64_t block) const { return blocks_[block]; }
  const Panel& panel(int64_t block) const { return panels_[block - first_]; }
  const Element* right(int64_t row) const { return right_ + row * s_.channels; }

 private:
  const TopkAffinity& s_;
  const std::vector<Patch>& blocks_;
  std::vector<Panel> panels_;
  std::vector<Element> copy_;
  const Element* right_ = nullptr;
  std::vector<int64_t> offsets_;
  int64_t first_ = 0, last_ = 0;
};

// A strip of queries, and what its thread needs to pass chunks by it.
template <typename Feature, typename Panel>
class Strip {
 public:
  using Element = typename Panel::Element;

  Strip(const TopkAffinity& s, const TopkAffinityGradient& in, const KeptKeys& kept, const std::vector<int32_t>& place)
      : s_(s), in_(in), kept_(kept), place_(place) {}

  // The queries of a patch of target b; query [N, D] are those of the target.
  void load(int64_t b, const Patch& patch, const Feature* query) {
    target_ = b, patch_ = &patch;
    if constexpr (std::is_same_v<Feature, float>)
      if (stays_in_place<Feature>(s_)) {
        left_ = right_ = query + patch.positions[0] * s_.channels;
        return;
      }
    right_copy_.resize(kStrip * s_.channels);
    put_right(patch, query, s_.channels, right_copy_.data());
    left_ = right_ = right_copy_.data();
    if constexpr (!std::is_same_v<Element, float>) {
      left_copy_.resize(kStrip * s_.channels);
      for (int64_t q = 0; q < patch.count(); ++q)
        convert(query + patch.positions[q] * s_.channels, s_.channels, &left_copy_[q * s_.channels]);
      left_ = left_copy_.data();
    }
  }

  // Adds what a slot that holds the chunk's frame gives: d_keys [rows of the chunk][D], d_queries [queries][D].
  void pass(const Chunk<Feature, Panel>& chunk, int64_t slot, float* d_keys, float* d_queries) {
    const int64_t* copies = in_.copies + (target_ * s_.slots + slot) * 2;
    take_denominators(slot);
    sort_kept(chunk, slot);
    int64_t used = 0, start = 0;
    for (int64_t block = chunk.first(); block < chunk.last(); ++block) {
      const bool seen = sees(s_, *patch_, chunk.patch(block), copies);
      if (seen) {
        if (used == 0) start = chunk.offset(block);
        share(chunk, block, copies, chunk.offset(block) - start);
        used = chunk.offset(block) - start + chunk.rows(block);
        multiply_add(chunk.rows(block), s_.channels, patch_->count(), transposed_.data(), kStrip, right_,
                     d_keys + chunk.offset(block) * s_.channels);
      }
      if (used > 0 && (!seen || block + 1 == chunk.last() || used + kLanes > kRun)) {
        multiply_add(patch_->count(), s_.channels, used, share_.data(), kRun, chunk.right(start), d_queries);
        used = 0;
      }
    }
  }

 private:
  struct Kept {
    int64_t query;  // of the strip
    int64_t lane;   // key of the block
    float factor;
  };

  void take_denominators(int64_t slot) {
    const int64_t group = s_.joint ? 0 : slot;
    for (int64_t q = 0; q < patch_->count(); ++q) {
      const int64_t n = patch_->positions[q];
      shift_[q] = in_.denominators[(target_ * s_.queries + n) * s_.groups() + group];
      factor_[q] = -kept_.mean(target_, n, group);
      // A query that may see nothing: exp(x - inf) = 0.
      if (!std::isfinite(shift_[q])) shift_[q] = std::numeric_limits<float>::infinity(), factor_[q] = 0.0f;
    }
  }

  // The kept keys of the slot that are in the chunk, block by block.
  void sort_kept(const Chunk<Feature, Panel>& chunk, int64_t slot) {
    starts_.assign(chunk.last() - chunk.first() + 2, 0);
    const auto for_each = [&](auto found) {
      for (int64_t q = 0; q < patch_->count(); ++q)
        kept_.of_slot(target_, patch_->positions[q], slot, [&](int64_t position, float factor) {
          const int64_t block = place_[position] / kLanes;
          if (block >= chunk.first() && block < chunk.last())
            found(block - chunk.first(), Kept{q, place_[position] % kLanes, factor});
        });
    };
    for_each([&](int64_t block, const Kept&) { ++starts_[block + 2]; });
    for (size_t i = 1; i < starts_.size(); ++i) starts_[i] += starts_[i - 1];
    sorted_.resize(starts_.back());
    for_each([&](int64_t block, const Kept& kept) { sorted_[starts_[block + 1]++] = kept; });
  }

  // The gradient of the dot products with a block of keys: into share_ from `column` on, and into transposed_.
  void share(const Chunk<Feature, Panel>& chunk, int64_t block, const int64_t* copies, int64_t column) {
    const Patch& keys = chunk.patch(block);
    const bool restricted = s_.width > 0 && copies[0] != copies[1];
    auto kept = sorted_.begin() + starts_[block - chunk.first()];
    const auto kept_end = sorted_.begin() + starts_[block - chunk.first() + 1];
    for (int64_t first = 0; first < patch_->count(); first += kRows) {
      const int64_t count = std::min(kRows, patch_->count() - first);
      chunk.panel(block).multiply(left_ + first * s_.channels, count, tile_.data());
      if (restricted) count_patch(s_, *patch_, first, count, keys, copies, tile_.data(), counts_.data());
      for (int64_t q = 0; q < count; ++q) {
        // A row of the tile is one query here, where column_share has a query a lane.
        alignas(64) float shift[kLanes], factor[kLanes];
        std::fill_n(shift, kLanes, shift_[first + q]);
        std::fill_n(factor, kLanes, factor_[first + q]);
        column_share(&tile_[q * kLanes], restricted ? &counts_[q * kLanes] : nullptr, static_cast<float>(copies[0]), 1,
                     shift, factor, s_.scale);
      }
      for (; kept != kept_end && kept->query < first + count; ++kept)
        tile_[(kept->query - first) * kLanes + kept->lane] += kept->factor;
      store(first, count, keys.count(), column);
    }
    if (patch_->count() % 2)
      for (int64_t k = 0; k < kLanes; ++k) transposed_[k * kStrip + patch_->count()] = Element(0.0f);
  }

  void store(int64_t first, int64_t count, int64_t keys, int64_t column) {
    const Element* rows;
    if constexpr (std::is_same_v<Element, float>) {
      rows = tile_.data();
    } else {
      convert(tile_.data(), count * kLanes, rounded_.data());
      rows = rounded_.data();
    }
    for (int64_t q = 0; q < count; ++q) {
      Element* out = &share_[(first + q) * kRun + column];
      std::copy_n(rows + q * kLanes, keys, out);
      if (keys % 2) out[keys] = Element(0.0f);
    }
    transpose(rows, count, kLanes, kStrip, &transposed_[first]);
  }

  const TopkAffinity& s_;
  const TopkAffinityGradient& in_;
  const KeptKeys& kept_;
  const std::vector<int32_t>& place_;  // [M]: block * kLanes + lane of a position
  int64_t target_ = 0;
  const Patch* patch_ = nullptr;
  const Element *left_ = nullptr, *right_ = nullptr;  // the queries as rows, and as a right side
  std::vector<Element> left_copy_, right_copy_;
  float shift_[kStrip] = {}, factor_[kStrip] = {};  // log of the denominator, and -G * scale
  std::vector<Kept> sorted_;
  std::vector<int64_t> starts_;  // of each block of the chunk in sorted_
  std::vector<float> tile_ = std::vector<float>(kRows * kLanes), counts_ = std::vector<float>(kRows * kLanes);
  std::vector<Element> rounded_ = std::vector<Element>(std::is_same_v<Element, float> ? 0 : kRows * kLanes);
  std::vector<Element> share_ = std::vector<Element>(kStrip * kRun);         // [queries][keys of a run]
  std::vector<Element> transposed_ = std::vector<Element>(kLanes * kStrip);  // [keys of a block][queries]
};

// The sums that become d_query [B, N, D]: in it for float, half in it for 16-bit types (row_arithmetic.h).
template <typename Feature>
class QuerySums {
 public:
  QuerySums(const TopkAffinity& s, Feature* out)
      : channels_(s.channels),
        count_(s.targets * s.queries * s.channels),
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

// The whole gradient: what is shared by the threads, and the loops around a strip and a chunk.
template <typename Feature, typename Panel>
class Gradient {
 public:
  Gradient(const TopkAffinity& s, const TopkAffinityGradient& in, const KeptKeys& kept, const Feature* query,
           Feature* d_query)
      : s_(s),
        query_(query),
        d_query_(d_query),
        sums_(s, d_query),
        parts_(at::get_num_threads()),
        strips_(patches_of(s.queries, s.width, kStrip)),
        blocks_(patches_of(s.positions, s.width, kLanes)),
        place_(s.positions),
        most_(blocks_in_a_chunk()),
        chunk_(s, blocks_, most_),
        workers_(parts_, Strip<Feature, Panel>(s, in, kept, place_)),
        d_keys_(parts_ * most_ * kLanes * s.channels),
        d_strips_(stays_in_place<Feature>(s) ? 0 : parts_ * kStrip * s.channels),
        copies_(in.copies) {
    for (size_t block = 0; block < blocks_.size(); ++block)
      for (int64_t k = 0; k < blocks_[block].count(); ++k)
        place_[blocks_[block].positions[k]] = static_cast<int32_t>(block * kLanes + k);
  }

  // Keys [M][D] of a frame and the slots that hold it: writes d_keys [M][D].
  void frame(const Feature* keys, const std::vector<Use>& uses, Feature* d_keys) {
    const int64_t count = static_cast<int64_t>(blocks_.size()),
                  chunks = (count + most_ - 1) / std::max<int64_t>(1, most_);
    for (int64_t c = 0; c < chunks; ++c) {
      chunk_.load(keys, c * count / chunks, (c + 1) * count / chunks);
      at::parallel_for(0, parts_, 1, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part) take_part(part, uses);
        at::native::cpublas::brgemm_release(false);
      });
      at::parallel_for(chunk_.first(), chunk_.last(), 1, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) write_keys(block, d_keys);
      });
    }
  }

  void finish() { sums_.finish(); }

 private:
  int64_t blocks_in_a_chunk() const {
    const int64_t copies = stays_in_place<Feature>(s_) ? 1 : 2;
    const int64_t bytes =
        kLanes * s_.channels * (parts_ * 4 + copies * static_cast<int64_t>(sizeof(typename Panel::Element)));
    return std::min<int64_t>(blocks_.size(), std::max<int64_t>(2, kScratch / std::max<int64_t>(1, bytes)));
  }

  float* part_of_keys(int64_t part) { return d_keys_.data() + part * most_ * kLanes * s_.channels; }

  // Every parts-th strip against the chunk. Under a region those that see it lie together, and all threads have some.
  void take_part(int64_t part, const std::vector<Use>& uses) {
    std::fill_n(part_of_keys(part), most_ * kLanes * s_.channels, 0.0f);
    const int64_t count = static_cast<int64_t>(strips_.size());
    for (int64_t item = part; item < s_.targets * count; item += parts_) {
      const int64_t b = item / count;
      const Patch& patch = strips_[item % count];
      float* d_queries = nullptr;
      for (const Use& use : uses) {
        if (use.target != b || !sees_chunk(patch, use)) continue;
        if (d_queries == nullptr) {
          workers_[part].load(b, patch, query_ + b * s_.queries * s_.channels);
          d_queries = start_strip(part, b, patch);
        }
        workers_[part].pass(chunk_, use.slot, part_of_keys(part), d_queries);
      }
      if (d_queries == nullptr || d_strips_.empty()) continue;
      for (int64_t q = 0; q < patch.count(); ++q)
        sums_.add(b * s_.queries + patch.positions[q], d_queries + q * s_.channels);
    }
  }

  bool sees_chunk(const Patch& patch, const Use& use) const {
    const int64_t* copies = copies_ + (use.target * s_.slots + use.slot) * 2;
    for (int64_t block = chunk_.first(); block < chunk_.last(); ++block)
      if (sees(s_, patch, blocks_[block], copies)) return true;
    return false;
  }

  // Where the gradient of a strip's queries is summed: in the output if that has room for it, else in a buffer of 0.
  float* start_strip(int64_t part, int64_t b, const Patch& patch) {
    if constexpr (std::is_same_v<Feature, float>)
      if (d_strips_.empty()) return d_query_ + (b * s_.queries + patch.positions[0]) * s_.channels;
    float* sum = d_strips_.data() + part * kStrip * s_.channels;
    std::fill_n(sum, patch.count() * s_.channels, 0.0f);
    return sum;
  }

  void write_keys(int64_t block, Feature* d_keys) {
    for (int64_t k = 0; k < blocks_[block].count(); ++k) {
      const int64_t row = (chunk_.offset(block) + k) * s_.channels;
      for (int64_t part = 1; part < parts_; ++part)
        add_scaled(1.0f, part_of_keys(part) + row, s_.channels, part_of_keys(0) + row);
      convert(part_of_keys(0) + row, s_.channels, d_keys + blocks_[block].positions[k] * s_.channels);
    }
  }

  const TopkAffinity& s_;
  const Feature* query_;
  Feature* d_query_;
  QuerySums<Feature> sums_;
  int64_t parts_;
  std::vector<Patch> strips_, blocks_;
  std::vector<int32_t> place_;
  int64_t most_;  // blocks in a chunk
  Chunk<Feature, Panel> chunk_;
  std::vector<Strip<Feature, Panel>> workers_;  // one a part
  std::vector<float> d_keys_;                   // [parts][rows of a chunk][D]
  std::vector<float> d_strips_;                 // [parts][kStrip][D]
  const int64_t* copies_;
};

template <typename Feature, typename Panel>
void run(const TopkAffinity& s, const TopkAffinityGradient& in, const KeptKeys& kept, const Feature* query,
         const Feature* bank, Feature* d_query, Feature* d_bank) {
  Gradient<Feature, Panel> gradient(s, in, kept, query, d_query);
  const std::vector<std::vector<Use>> uses = uses_of(s, in.frames);
  const int64_t size = s.positions * s.channels;
  for (int64_t frame = 0; frame < s.frames; ++frame) {
    if (uses[frame].empty())
      std::fill_n(d_bank + frame * size, size, Feature(0.0f));
    else
      gradient.frame(bank + frame * size, uses[frame], d_bank + frame * size);
  }
  gradient.finish();
}

}  // namespace

template <typename Feature>
void gradient_of_all(const TopkAffinity& s, const TopkAffinityGradient& in, const KeptKeys& kept, const Feature* query,
                     const Feature* bank, Feature* d_query, Feature* d_bank) {
  if constexpr (std::is_same_v<Feature, c10::BFloat16>)
    if (PairPanel::can_run(s.channels)) return run<Feature, PairPanel>(s, in, kept, query, bank, d_query, d_bank);
  run<Feature, FloatPanel>(s, in, kept, query, bank, d_query, d_bank);
}

template void gradient_of_all(const TopkAffinity&, const TopkAffinityGradient&, const KeptKeys&, const float*,
                              const float*, float*, float*);
template void gradient_of_all(const TopkAffinity&, const TopkAffinityGradient&, const KeptKeys&, const c10::BFloat16*,
                              const c10::BFloat16*, c10::BFloat16*, c10::BFloat16*);
template void gradient_of_all(const TopkAffinity&, const TopkAffinityGradient&, const KeptKeys&, const c10::Half*,
                              const c10::Half*, c10::Half*, c10::Half*);

}  // namespace timecycle
