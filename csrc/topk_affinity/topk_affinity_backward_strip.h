// A strip of queries against a chunk of keys: the inner loops of topk_affinity_backward_all.cpp.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "simd/rows.h"
#include "sizes.h"
#include "topk_affinity/grid_tiles.h"
#include "topk_affinity/panels.h"
#include "topk_affinity/topk_affinity_backward.h"

namespace timecycle {

constexpr int64_t kStrip = 128;       // queries that a thread takes at once
constexpr int64_t kRun = 4 * kLanes;  // keys that the products for the gradients take at once

inline int64_t even(int64_t count) { return count + count % 2; }

// C [M][N] += A [M][K] B [K][N]; the rows of A are `stride` apart. For bfloat16, B has its rows in pairs, [K /
// 2][N][2], and K is rounded up to even: both A and B must be padded with zeros.
inline void multiply_add(int64_t m, int64_t n, int64_t k, const float* a, int64_t stride, const float* b, float* c) {
  at::native::cpublas::brgemm(m, n, k, stride, n, n, /*add_C=*/true, a, b, c);
}

inline void multiply_add(int64_t m, int64_t n, int64_t k, const c10::BFloat16* a, int64_t stride,
                         const c10::BFloat16* b, float* c) {
  at::native::cpublas::brgemm(m, n, even(k), stride, n, n, /*add_C=*/true, a, b, c, /*is_vnni=*/true);
}

// Copies the features of a block in the layout of multiply_add's B, padded to an even number of rows by zeros.
template <typename Feature>
void copy_right(const PositionBlock& block, const Feature* features, int64_t channels, float* out) {
  for (int64_t i = 0; i < block.count(); ++i)
    convert(features + block.positions[i] * channels, channels, out + i * channels);
  if (block.count() % 2) std::fill_n(out + block.count() * channels, channels, 0.0f);
}

inline void copy_right(const PositionBlock& block, const c10::BFloat16* features, int64_t channels,
                       c10::BFloat16* out) {
  const std::vector<c10::BFloat16> zeros(block.count() % 2 * channels);
  for (int64_t i = 0; i < block.count(); i += 2)
    interleave_rows(features + block.positions[i] * channels,
                    i + 1 < block.count() ? features + block.positions[i + 1] * channels : zeros.data(), channels,
                    out + i * channels);
}

// Whether the features of a block need no copy: they are floats, and consecutive.
template <typename Feature>
bool used_in_place(const Problem& p) {
  return std::is_same_v<Feature, float> && p.grid_width == 0;
}

// Some keys of a frame in the layouts that both products need; shared by the threads.
template <typename Feature, typename Panel>
class Chunk {
 public:
  using Element = typename Panel::Element;

  Chunk(const Problem& p, const std::vector<PositionBlock>& blocks, int64_t most)
      : p_(p),
        blocks_(blocks),
        panels_(most, Panel(p.channels)),
        copy_(used_in_place<Feature>(p) ? 0 : checked_product({most, kLanes, p.channels})) {}

  // Loads blocks first .. last - 1 of the keys [M][D] of a frame.
  void load(const Feature* keys, int64_t first, int64_t last) {
    first_ = first, last_ = last;
    offsets_.assign(1, 0);
    for (int64_t block = first; block < last; ++block) offsets_.push_back(offsets_.back() + even(rows(block)));
    right_ = copy_.data();
    if constexpr (std::is_same_v<Feature, float>)
      if (copy_.empty()) right_ = keys + blocks_[first].positions[0] * p_.channels;
    at::parallel_for(first, last, 1, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        if (!copy_.empty()) copy_right(blocks_[block], keys, p_.channels, &copy_[offset(block) * p_.channels]);
        if constexpr (std::is_same_v<Element, float>)
          panels_[block - first].set_rows(right(offset(block)), rows(block));
        else
          for (int64_t k = 0; k < rows(block); ++k)
            panels_[block - first].set(k, keys + blocks_[block].positions[k] * p_.channels);
      }
    });
  }

  int64_t first() const { return first_; }
  int64_t last() const { return last_; }
  int64_t rows(int64_t block) const { return blocks_[block].count(); }
  int64_t offset(int64_t block) const { return offsets_[block - first_]; }  // row of the chunk where a block begins
  const PositionBlock& block_at(int64_t block) const { return blocks_[block]; }
  const Panel& panel(int64_t block) const { return panels_[block - first_]; }
  const Element* right(int64_t row) const { return right_ + row * p_.channels; }

 private:
  const Problem& p_;
  const std::vector<PositionBlock>& blocks_;
  std::vector<Panel> panels_;
  std::vector<Element> copy_;
  const Element* right_ = nullptr;
  std::vector<int64_t> offsets_;
  int64_t first_ = 0, last_ = 0;
};

// A strip of queries, and the working memory of its thread.
template <typename Feature, typename Panel>
class Strip {
 public:
  using Element = typename Panel::Element;

  Strip(const Problem& p, const TopkAffinityGradient& in, const KeptKeys& kept, const std::vector<int32_t>& place)
      : p_(p), in_(in), kept_(kept), place_(place) {}

  // Loads the queries of a block of target b; `query` [N, D] are all of the target's.
  void load(int64_t b, const PositionBlock& queries, const Feature* query) {
    target_ = b, queries_ = &queries;
    if constexpr (std::is_same_v<Feature, float>)
      if (used_in_place<Feature>(p_)) {
        left_ = right_ = query + queries.positions[0] * p_.channels;
        return;
      }
    right_copy_.resize(kStrip * p_.channels);
    copy_right(queries, query, p_.channels, right_copy_.data());
    left_ = right_ = right_copy_.data();
    if constexpr (!std::is_same_v<Element, float>) {
      left_copy_.resize(kStrip * p_.channels);
      for (int64_t q = 0; q < queries.count(); ++q)
        convert(query + queries.positions[q] * p_.channels, p_.channels, &left_copy_[q * p_.channels]);
      left_ = left_copy_.data();
    }
  }

  // Adds the gradients from a slot that holds the chunk's frame: d_keys [rows of the chunk][D], d_queries [queries][D].
  void pass(const Chunk<Feature, Panel>& chunk, int64_t slot, float* d_keys, float* d_queries) {
    const int64_t* multiplicity = p_.multiplicity + (target_ * p_.slots + slot) * 2;
    take_denominators(slot);
    sort_kept(chunk, slot);
    int64_t used = 0, start = 0;
    for (int64_t block = chunk.first(); block < chunk.last(); ++block) {
      const bool seen = sees(p_, *queries_, chunk.block_at(block), multiplicity);
      if (seen) {
        if (used == 0) start = chunk.offset(block);
        take_block(chunk, block, multiplicity, chunk.offset(block) - start);
        used = chunk.offset(block) - start + chunk.rows(block);
      }
      if (used > 0 && (!seen || block + 1 == chunk.last() || used + kLanes > kRun)) {
        multiply_add(queries_->count(), p_.channels, used, d_products_.data(), kRun, chunk.right(start), d_queries);
        multiply_add(used, p_.channels, queries_->count(), transposed_.data(), kStrip, right_,
                     d_keys + start * p_.channels);
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
    const int64_t group = p_.joint ? 0 : slot;
    for (int64_t q = 0; q < queries_->count(); ++q) {
      const int64_t n = queries_->positions[q];
      shift_[q] = in_.denominators[(target_ * p_.queries + n) * p_.groups() + group];
      factor_[q] = -kept_.mean(target_, n, group);
      // For a query that sees no key: exp(x - inf) = 0.
      if (!std::isfinite(shift_[q])) shift_[q] = std::numeric_limits<float>::infinity(), factor_[q] = 0.0f;
    }
  }

  // The kept keys of the slot that are in the chunk, block by block.
  void sort_kept(const Chunk<Feature, Panel>& chunk, int64_t slot) {
    starts_.assign(chunk.last() - chunk.first() + 2, 0);
    const auto for_each = [&](auto visit) {
      for (int64_t q = 0; q < queries_->count(); ++q)
        kept_.for_each(target_, queries_->positions[q], slot, [&](int64_t position, float factor) {
          const int64_t block = place_[position] / kLanes;
          if (block >= chunk.first() && block < chunk.last())
            visit(block - chunk.first(), Kept{q, place_[position] % kLanes, factor});
        });
    };
    for_each([&](int64_t block, const Kept&) { ++starts_[block + 2]; });
    for (size_t i = 1; i < starts_.size(); ++i) starts_[i] += starts_[i - 1];
    sorted_.resize(starts_.back());
    for_each([&](int64_t block, const Kept& kept) { sorted_[starts_[block + 1]++] = kept; });
  }

  // The gradient of the dot products with a block of keys: into d_products_ from `column` on, and into transposed_.
  void take_block(const Chunk<Feature, Panel>& chunk, int64_t block, const int64_t* multiplicity, int64_t column) {
    const PositionBlock& keys = chunk.block_at(block);
    auto kept = sorted_.begin() + starts_[block - chunk.first()];
    const auto kept_end = sorted_.begin() + starts_[block - chunk.first() + 1];
    for (int64_t first = 0; first < queries_->count(); first += kRows) {
      const int64_t count = std::min(kRows, queries_->count() - first);
      chunk.panel(block).multiply(left_ + first * p_.channels, count, tile_.data());
      const TileMultiplicity counts =
          block_multiplicity(p_, *queries_, first, count, keys, multiplicity, multiplicity_.data());
      row_exponentials(tile_.data(), counts, count, shift_ + first, factor_ + first, p_.softmax_scale);
      for (; kept != kept_end && kept->query < first + count; ++kept)
        tile_[(kept->query - first) * kLanes + kept->lane] += kept->factor;
      store(first, count, keys.count(), column);
    }
    if (queries_->count() % 2)
      for (int64_t k = 0; k < kLanes; ++k) transposed_[(column + k) * kStrip + queries_->count()] = Element(0.0f);
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
      Element* out = &d_products_[(first + q) * kRun + column];
      std::copy_n(rows + q * kLanes, keys, out);
      if (keys % 2) out[keys] = Element(0.0f);
    }
    transpose(rows, count, kLanes, kStrip, &transposed_[column * kStrip + first]);
  }

  const Problem& p_;
  const TopkAffinityGradient& in_;
  const KeptKeys& kept_;
  const std::vector<int32_t>& place_;  // [M]: block * kLanes + lane of a position
  int64_t target_ = 0;
  const PositionBlock* queries_ = nullptr;
  const Element *left_ = nullptr, *right_ = nullptr;  // the queries in the layouts of multiply_add's A and B
  std::vector<Element> left_copy_, right_copy_;
  float shift_[kStrip] = {}, factor_[kStrip] = {};  // log of the denominator, and -G * scale
  std::vector<Kept> sorted_;
  std::vector<int64_t> starts_;  // of each block of the chunk in sorted_
  std::vector<float> tile_ = std::vector<float>(kRows * kLanes), multiplicity_ = std::vector<float>(kRows * kLanes);
  std::vector<Element> rounded_ = std::vector<Element>(std::is_same_v<Element, float> ? 0 : kRows * kLanes);
  std::vector<Element> d_products_ = std::vector<Element>(kStrip * kRun);  // [queries][keys of a run]
  std::vector<Element> transposed_ = std::vector<Element>(kRun * kStrip);  // [keys of a run][queries]
};

}  // namespace timecycle
