// A strip of queries against a chunk of keys: the inside of the gradient for softmax_over="all".
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "simd/row_arithmetic.h"
#include "sizes.h"
#include "topk_affinity/grid_patches.h"
#include "topk_affinity/tile_product.h"
#include "topk_affinity/topk_affinity_backward.h"

namespace timecycle {

constexpr int64_t kStrip = 128;       // queries that a thread takes at once
constexpr int64_t kRun = 4 * kLanes;  // keys that the products for the gradients take at once

inline int64_t even(int64_t count) { return count + count % 2; }

// C [M][N] += A [M][K] B [K][N]; the rows of A are `stride` apart. B of bfloat16 has rows in pairs: [K / 2][N][2],
// where K is made even: A and B have a 0 there, both, so that neither meets what the other may hold of an older NaN.
inline void multiply_add(int64_t m, int64_t n, int64_t k, const float* a, int64_t stride, const float* b, float* c) {
  at::native::cpublas::brgemm(m, n, k, stride, n, n, /*add_C=*/true, a, b, c);
}

inline void multiply_add(int64_t m, int64_t n, int64_t k, const c10::BFloat16* a, int64_t stride,
                         const c10::BFloat16* b, float* c) {
  at::native::cpublas::brgemm(m, n, even(k), stride, n, n, /*add_C=*/true, a, b, c, /*is_vnni=*/true);
}

// The features of a patch as the right side B of multiply_add; an odd number is made even by a row of 0.
template <typename Feature>
void put_right(const Patch& patch, const Feature* features, int64_t channels, float* out) {
  for (int64_t i = 0; i < patch.count(); ++i)
    convert(features + patch.positions[i] * channels, channels, out + i * channels);
  if (patch.count() % 2) std::fill_n(out + patch.count() * channels, channels, 0.0f);
}

inline void put_right(const Patch& patch, const c10::BFloat16* features, int64_t channels, c10::BFloat16* out) {
  const std::vector<c10::BFloat16> zeros(patch.count() % 2 * channels);
  for (int64_t i = 0; i < patch.count(); i += 2)
    pair_rows(features + patch.positions[i] * channels,
              i + 1 < patch.count() ? features + patch.positions[i + 1] * channels : zeros.data(), channels,
              out + i * channels);
}

// Whether the floats of a patch are where they are needed: side by side, and floats.
template <typename Feature>
bool stays_in_place(const TopkAffinity& s) {
  return std::is_same_v<Feature, float> && s.grid_width == 0;
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
        copy_(stays_in_place<Feature>(s) ? 0 : checked_product({most, kLanes, s.channels})) {}

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
        if (!copy_.empty()) put_right(blocks_[block], keys, s_.channels, &copy_[offset(block) * s_.channels]);
        if constexpr (std::is_same_v<Element, float>)
          panels_[block - first].set_rows(right(offset(block)), rows(block));
        else
          for (int64_t k = 0; k < rows(block); ++k)
            panels_[block - first].set(k, keys + blocks_[block].positions[k] * s_.channels);
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
    const int64_t* multiplicity = s_.multiplicity + (target_ * s_.slots + slot) * 2;
    take_denominators(slot);
    sort_kept(chunk, slot);
    int64_t used = 0, start = 0;
    for (int64_t block = chunk.first(); block < chunk.last(); ++block) {
      const bool seen = sees(s_, *patch_, chunk.patch(block), multiplicity);
      if (seen) {
        if (used == 0) start = chunk.offset(block);
        share(chunk, block, multiplicity, chunk.offset(block) - start);
        used = chunk.offset(block) - start + chunk.rows(block);
      }
      if (used > 0 && (!seen || block + 1 == chunk.last() || used + kLanes > kRun)) {
        multiply_add(patch_->count(), s_.channels, used, share_.data(), kRun, chunk.right(start), d_queries);
        multiply_add(used, s_.channels, patch_->count(), transposed_.data(), kStrip, right_,
                     d_keys + start * s_.channels);
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
  void share(const Chunk<Feature, Panel>& chunk, int64_t block, const int64_t* multiplicity, int64_t column) {
    const Patch& keys = chunk.patch(block);
    const bool counted = restricted(s_, multiplicity);
    auto kept = sorted_.begin() + starts_[block - chunk.first()];
    const auto kept_end = sorted_.begin() + starts_[block - chunk.first() + 1];
    for (int64_t first = 0; first < patch_->count(); first += kRows) {
      const int64_t count = std::min(kRows, patch_->count() - first);
      chunk.panel(block).multiply(left_ + first * s_.channels, count, tile_.data());
      if (counted) count_patch(s_, *patch_, first, count, keys, multiplicity, counts_.data());
      row_share(tile_.data(), counted ? counts_.data() : nullptr, static_cast<float>(multiplicity[0]), count,
                shift_ + first, factor_ + first, s_.softmax_scale);
      for (; kept != kept_end && kept->query < first + count; ++kept)
        tile_[(kept->query - first) * kLanes + kept->lane] += kept->factor;
      store(first, count, keys.count(), column);
    }
    if (patch_->count() % 2)
      for (int64_t k = 0; k < kLanes; ++k) transposed_[(column + k) * kStrip + patch_->count()] = Element(0.0f);
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
    transpose(rows, count, kLanes, kStrip, &transposed_[column * kStrip + first]);
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
  std::vector<Element> share_ = std::vector<Element>(kStrip * kRun);       // [queries][keys of a run]
  std::vector<Element> transposed_ = std::vector<Element>(kRun * kStrip);  // [keys of a run][queries]
};

}  // namespace timecycle
