// topk_affinity on the CPU: one pass over the context, tile by tile, no matrix.
//
// A work item is a few tiles of kLanes queries of one target. For every slot and every few keys one small product
// leaves a [keys][queries] tile in the first-level cache, from which Neighbours takes maxima, sums and the k largest
// before the next product overwrites it. With a region, a tile of queries is a square of the grid, and only the keys of
// the box around it are multiplied. Extra memory: under a MB a thread.
#include <ATen/Parallel.h>
#include <c10/util/Half.h>

#include <type_traits>

#include "candidates.h"
#include "neighbours.h"
#include "tile_product.h"
#include "topk_affinity.h"

namespace timecycle {
namespace {

constexpr int64_t kGroup = 4;  // tiles of queries that take turns on the same keys while those are in the second cache
constexpr int64_t kBoundedChannels = 128;
constexpr int64_t kSide = 8;  // of the square of queries that makes a tile under a region; kSide * kSide == kLanes

// One tile of queries: which they are, and where on the grid if there is a region.
struct QueryTile {
  int64_t count = 0;
  int64_t query[kLanes];
  int64_t top = 0, bottom = 0, left = 0, right = 0;  // of the square they fill
  alignas(64) int32_t column[kLanes] = {};
  int32_t row[kLanes] = {};
};

std::vector<QueryTile> make_tiles(const TopkAffinity& s) {
  std::vector<QueryTile> tiles;
  if (s.width == 0) {
    for (int64_t first = 0; first < s.queries; first += kLanes) {
      QueryTile& tile = tiles.emplace_back();
      for (int64_t q = first; q < std::min(first + kLanes, s.queries); ++q) tile.query[tile.count++] = q;
    }
    return tiles;
  }
  const int64_t height = s.queries / s.width;
  for (int64_t top = 0; top < height; top += kSide)
    for (int64_t left = 0; left < s.width; left += kSide) {
      QueryTile& tile = tiles.emplace_back();
      tile.top = top, tile.bottom = std::min(top + kSide, height) - 1;
      tile.left = left, tile.right = std::min(left + kSide, s.width) - 1;
      for (int64_t y = top; y <= tile.bottom; ++y)
        for (int64_t x = left; x <= tile.right; ++x) {
          tile.row[tile.count] = static_cast<int32_t>(y), tile.column[tile.count] = static_cast<int32_t>(x);
          tile.query[tile.count++] = y * s.width + x;
        }
    }
  return tiles;
}

// How far bfloat16 products may be from float ones: the largest norm of a key, and of what rounding takes from it.
struct Rounding {
  float norm = 0.0f, residual = 0.0f;
};

Rounding rounding_of(const float* keys, int64_t count, int64_t channels) {
  const int64_t threads = at::get_num_threads();
  std::vector<Rounding> parts(threads);
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    std::vector<uint16_t> rounded(channels);
    for (int64_t part = begin; part < end; ++part)
      for (int64_t i = part * count / threads; i < (part + 1) * count / threads; ++i) {
        const float* key = keys + i * channels;
        parts[part].norm = std::max(parts[part].norm, dot(key, key, channels));
        parts[part].residual = std::max(parts[part].residual, round_to_bfloat16(key, channels, rounded.data()));
      }
  });
  Rounding all;
  for (const Rounding& part : parts) {
    all.norm = std::max(all.norm, std::sqrt(part.norm));
    all.residual = std::max(all.residual, std::sqrt(part.residual));
  }
  return all;
}

// kBounded: low-precision products leave candidates, which float products decide (candidates.h).
template <typename Feature, typename Panel, bool kBounded>
class WorkItem {
 public:
  using Element = typename Panel::Element;

  WorkItem(const TopkAffinity& shape, const QueryTile* tiles, int64_t group, const Feature* query,
           const Rounding& rounding)
      : s_(shape), tiles_(tiles), group_(group), query_(query), tile_(kRows * kLanes), counts_(kRows * kLanes) {
    for (int64_t g = 0; g < group; ++g) {
      panels_.emplace_back(s_.channels);
      lists_.emplace_back(s_.k, s_.scale, s_.all, s_.ties);
      if constexpr (kBounded) candidates_.emplace_back(s_.k);
      for (int64_t q = 0; q < tiles[g].count; ++q) {
        const Feature* features = query + tiles[g].query[q] * s_.channels;
        if constexpr (kBounded) {
          std::vector<Element> rounded(s_.channels);
          const float lost = round_to_bfloat16(features, s_.channels, reinterpret_cast<uint16_t*>(rounded.data()));
          const float norm = std::sqrt(dot(features, features, s_.channels)), residual = std::sqrt(lost);
          // Each of the two sums of D products is off by at most D * 2^-24 of |q| |k|; four times that covers the
          // rounding of the bound itself.
          const float sums = 4.0f * static_cast<float>(s_.channels) * 0x1p-23f;
          candidates_[g].set_error(q, 1.01f * (residual * rounding.norm + (norm + residual) * rounding.residual) +
                                          sums * norm * rounding.norm);
          panels_[g].set(q, rounded.data());
        } else {
          panels_[g].set(q, features);
        }
      }
    }
  }

  // Lets every key of a slot pass that counts anywhere: keys [M][D], copies [2].
  void pass(const Feature* keys, int64_t slot, const int64_t* copies) {
    if (s_.width > 0) {
      pass_rows(keys, slot, copies);
    } else if (copies[0] > 0) {
      for (int64_t m = 0; m < s_.positions; m += kRows) {
        const int64_t rows = std::min(kRows, s_.positions - m);
        const Element* ready = prepare(keys + m * s_.channels, rows * s_.channels, ready_);
        for (int64_t g = 0; g < group_; ++g) take(g, ready, slot, m, rows, copies, -1);
      }
    }
  }

  // Decides between the candidates of the slots so far: bank [F][M][D], context the frames of the slots.
  void decide(const Feature* bank, const int64_t* context) {
    if constexpr (kBounded)
      for (int64_t g = 0; g < group_; ++g) {
        for (int64_t q = 0; q < tiles_[g].count; ++q) {
          const float* features = query_ + tiles_[g].query[q] * s_.channels;
          candidates_[g].finish(q, [&](int64_t index, int64_t times) {
            const int64_t row = context[index / s_.positions] * s_.positions + index % s_.positions;
            lists_[g].offer(q, dot(features, bank + row * s_.channels, s_.channels), times, index);
          });
        }
        candidates_[g].reset();
      }
  }

  const Neighbours& lists(int64_t g) const { return lists_[g]; }
  void reset() {
    for (Neighbours& lists : lists_) lists.reset();
  }

 private:
  // Under a region, row by row of the grid: the group's keys of a row are made ready once, and each tile of queries
  // takes those of its box.
  void pass_rows(const Feature* keys, int64_t slot, const int64_t* copies) {
    int64_t first[kGroup], last[kGroup];
    for (int64_t y = 0; y < s_.positions / s_.width; ++y) {
      int64_t left = s_.width, right = -1;
      for (int64_t g = 0; g < group_; ++g) {
        first[g] = 0, last[g] = s_.width - 1;
        if (copies[1] == 0) {
          const int64_t reach = copies[0] > 0 ? widest(tiles_[g], y) : -1;
          first[g] = std::max<int64_t>(0, tiles_[g].left - reach);
          last[g] = reach < 0 ? -1 : std::min(last[g], tiles_[g].right + reach);
        }
        if (last[g] < 0) continue;
        left = std::min(left, first[g]), right = std::max(right, last[g]);
      }
      if (right < 0) continue;
      const int64_t m = y * s_.width;
      const Element* ready =
          prepare(keys + (m + left) * s_.channels, (right - left + 1) * s_.channels, ready_) - left * s_.channels;
      for (int64_t g = 0; g < group_; ++g)
        for (int64_t x = first[g]; x <= last[g]; x += kRows)
          take(g, ready + x * s_.channels, slot, m + x, std::min(kRows, last[g] - x + 1), copies, y);
    }
  }

  int32_t reach(int64_t distance) const {
    return distance < static_cast<int64_t>(s_.reach.size()) ? static_cast<int32_t>(s_.reach[distance]) : -1;
  }

  // The widest reach that any row of a tile has into row y; -1 for none.
  int64_t widest(const QueryTile& tile, int64_t y) const {
    return reach(std::max<int64_t>({0, tile.top - y, y - tile.bottom}));
  }

  void take(int64_t g, const Element* keys, int64_t slot, int64_t m, int64_t rows, const int64_t* copies, int64_t y) {
    panels_[g].multiply(keys, rows, tile_.data());
    const bool restricted = s_.width > 0 && copies[0] != copies[1];
    if (restricted) {
      const QueryTile& queries = tiles_[g];
      alignas(64) int32_t allowed[kLanes];
      for (int64_t q = 0; q < kLanes; ++q) allowed[q] = reach(std::abs(y - queries.row[q]));
      count_row(tile_.data(), counts_.data(), rows, static_cast<int32_t>(m - y * s_.width), queries.column, allowed,
                static_cast<float>(copies[0]), static_cast<float>(copies[1]));
    }
    const auto show = [&](auto& taker) {
      taker.take(tile_.data(), restricted ? counts_.data() : nullptr, copies[0], rows, slot * s_.positions + m,
                 tiles_[g].count);
    };
    if constexpr (kBounded)
      show(candidates_[g]);
    else
      show(lists_[g]);
  }

  const TopkAffinity& s_;
  const QueryTile* tiles_;
  int64_t group_;
  const Feature* query_;
  std::vector<float> tile_, counts_;
  std::vector<Element> ready_;
  std::vector<Panel> panels_;
  std::vector<Neighbours> lists_;
  std::vector<Candidates> candidates_;
};

// Divides `count` tiles of each target into items: as few rounds of all threads as the group size allows, then as even
// as possible.
int64_t items_of(int64_t targets, int64_t count) {
  const int64_t threads = at::get_num_threads(), a_round = threads * kGroup;
  const int64_t rounds = std::max<int64_t>(1, (targets * count + a_round - 1) / a_round);
  return std::min(count, std::max<int64_t>(1, (rounds * threads + targets - 1) / std::max<int64_t>(1, targets)));
}

// The outputs: written in place, or with ties gathered first, because how long the rows are shows only at the end.
class Writer {
 public:
  Writer(const TopkAffinity& shape, const std::function<TopkAffinityOut(int64_t)>& allocate)
      : s_(shape), allocate_(allocate), rows_(s_.ties ? s_.targets * s_.queries * s_.groups() : 0) {
    if (!s_.ties)
      out_ = allocate(kept_ = s_.k);
    else
      denominators_.resize(s_.all ? rows_.size() : 0);
  }

  void write(int64_t row, const Neighbours& lists, int64_t q, float share) {
    thread_local std::vector<Neighbour> list;
    thread_local std::vector<float> weights;
    lists.list(q, list);
    weights.resize(list.size());
    lists.weigh(q, list, weights.data());
    for (float& weight : weights) weight *= share;
    if (s_.all) (s_.ties ? denominators_.data() : out_.denominators)[row] = lists.log_denominator(q);
    if (s_.ties)
      rows_[row] = {list, weights};
    else
      put(row, list, weights);
  }

  void finish() {
    if (!s_.ties) return;
    kept_ = 1;
    for (const Row& row : rows_) kept_ = std::max<int64_t>(kept_, row.list.size());
    out_ = allocate_(kept_);
    for (size_t row = 0; row < rows_.size(); ++row) put(row, rows_[row].list, rows_[row].weights);
    std::copy(denominators_.begin(), denominators_.end(), out_.denominators);
  }

 private:
  struct Row {
    std::vector<Neighbour> list;
    std::vector<float> weights;
  };

  void put(int64_t row, const std::vector<Neighbour>& list, const std::vector<float>& weights) {
    for (int64_t i = 0; i < kept_; ++i) {
      const bool exists = i < static_cast<int64_t>(list.size());
      out_.weights[row * kept_ + i] = exists ? weights[i] : 0.0f;
      out_.indices[row * kept_ + i] = exists ? list[i].index : -1;
    }
  }

  const TopkAffinity& s_;
  const std::function<TopkAffinityOut(int64_t)>& allocate_;
  std::vector<Row> rows_;
  std::vector<float> denominators_;
  TopkAffinityOut out_{};
  int64_t kept_ = 0;
};

template <typename Feature, typename Panel, bool kBounded = false>
void run(const TopkAffinity& s, const Feature* query, const Feature* bank, const int64_t* frames, const int64_t* copies,
         Writer& writer) {
  const std::vector<QueryTile> tiles = make_tiles(s);
  const int64_t count = static_cast<int64_t>(tiles.size());
  const int64_t items = items_of(s.targets, count);
  Rounding rounding;
  if constexpr (kBounded) rounding = rounding_of(bank, s.frames * s.positions, s.channels);
  at::parallel_for(0, s.targets * items, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / items, first = i % items * count / items, last = (i % items + 1) * count / items;
      const int64_t* context = frames + b * s.slots;
      const int64_t filled = std::count_if(context, context + s.slots, [](int64_t frame) { return frame >= 0; });
      const float share = s.joint ? 1.0f : 1.0f / static_cast<float>(std::max<int64_t>(filled, 1));
      WorkItem<Feature, Panel, kBounded> item(s, &tiles[first], last - first, query + b * s.queries * s.channels,
                                              rounding);
      for (int64_t slot = 0; slot < s.slots; ++slot) {
        if (context[slot] >= 0)
          item.pass(bank + context[slot] * s.positions * s.channels, slot, copies + (b * s.slots + slot) * 2);
        if (s.joint && slot + 1 < s.slots) continue;
        item.decide(bank, context);
        for (int64_t g = 0; g < last - first; ++g)
          for (int64_t q = 0; q < tiles[first + g].count; ++q)
            writer.write((b * s.queries + tiles[first + g].query[q]) * s.groups() + (s.joint ? 0 : slot), item.lists(g),
                         q, share);
        item.reset();
      }
    }
    at::native::cpublas::brgemm_release(false);
  });
}

}  // namespace

template <typename Feature>
void topk_affinity_cpu(const TopkAffinity& shape, const Feature* query, const Feature* bank, const int64_t* frames,
                       const int64_t* copies, const std::function<TopkAffinityOut(int64_t kept)>& allocate) {
  Writer writer(shape, allocate);
  bool done = false;
  if constexpr (std::is_same_v<Feature, c10::BFloat16>) {
    done = PairPanel::can_run(shape.channels);
    if (done) run<Feature, PairPanel>(shape, query, bank, frames, copies, writer);
  }
  if constexpr (std::is_same_v<Feature, float>) {
    // Below some hundred channels a second look costs more than the cheaper product saves.
    done = !shape.all && shape.channels >= kBoundedChannels && PairPanel::can_run(shape.channels);
    if (done) run<Feature, PairPanel, /*kBounded=*/true>(shape, query, bank, frames, copies, writer);
  }
  if (!done) run<Feature, FloatPanel>(shape, query, bank, frames, copies, writer);
  writer.finish();
}

template <typename Feature>
void tile_product_cpu(int64_t queries, int64_t positions, int64_t channels, const Feature* query, const Feature* keys) {
  using Panel = std::conditional_t<std::is_same_v<Feature, c10::BFloat16>, PairPanel, FloatPanel>;
  const int64_t tiles = (queries + kLanes - 1) / kLanes, items = items_of(1, tiles);
  at::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> tile(kRows * kLanes);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i * tiles / items, last = (i + 1) * tiles / items;
      std::vector<Panel> panels(last - first, Panel(channels));
      for (int64_t q = first * kLanes; q < std::min(queries, last * kLanes); ++q)
        panels[q / kLanes - first].set(q % kLanes, query + q * channels);
      for (int64_t m = 0; m < positions; m += kRows)
        for (Panel& panel : panels) panel.multiply(keys + m * channels, std::min(kRows, positions - m), tile.data());
    }
    at::native::cpublas::brgemm_release(false);
  });
}

template void tile_product_cpu(int64_t, int64_t, int64_t, const float*, const float*);
template void tile_product_cpu(int64_t, int64_t, int64_t, const c10::BFloat16*, const c10::BFloat16*);

using Allocate = std::function<TopkAffinityOut(int64_t)>;
template void topk_affinity_cpu(const TopkAffinity&, const float*, const float*, const int64_t*, const int64_t*,
                                const Allocate&);
template void topk_affinity_cpu(const TopkAffinity&, const c10::BFloat16*, const c10::BFloat16*, const int64_t*,
                                const int64_t*, const Allocate&);
template void topk_affinity_cpu(const TopkAffinity&, const c10::Half*, const c10::Half*, const int64_t*, const int64_t*,
                                const Allocate&);

}  // namespace timecycle
