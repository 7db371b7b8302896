// topk_affinity on the CPU: one pass over the keys, tile by tile, without materializing the affinity matrix.
//
// A work item is a few tiles of kLanes queries of one target. For every slot and each block of keys one small product
// leaves a [keys][queries] tile in the L1 cache, from which NeighborLists updates maxima, sums and the k largest before
// the next product overwrites it. For softmax over the top k alone, int8 products may select candidates first
// (candidates.h). Extra memory: a few MB per thread at most.
#include <ATen/Parallel.h>

#include <atomic>
#include <type_traits>

#include "topk_affinity/candidates.h"
#include "topk_affinity/grid_tiles.h"
#include "topk_affinity/neighbor_lists.h"
#include "topk_affinity/panels.h"

namespace timecycle {
namespace {

constexpr int64_t kGroup =
    4;  // tiles of queries that are multiplied with the same keys while those are in the L2 cache

// The same for int8 products. In larger groups keys are quantized fewer times, and more candidates are held at a time:
// the largest group whose memory, in all threads, is below 2% of the affinity matrix's.
int64_t byte_group(const Problem& p) {
  constexpr int64_t kLeast = 8, kMost = 64, kTypical = 160;  // candidates of a query
  const double lower = static_cast<double>(p.k + 2 * SortedLists::kStep) * sizeof(float);
  const double tile = kLanes * (static_cast<double>(p.channels) + lower + kTypical * sizeof(Candidate));
  const double matrix = 4.0 * p.targets * p.queries * p.slots * p.positions;
  return std::clamp(static_cast<int64_t>(0.018 * matrix / tile / at::get_num_threads()), kLeast, kMost);
}

// With fewer channels, or fewer keys per kept neighbor, deciding between candidates costs more than the cheaper product
// saves (measured with normalized random features on an Emerald Rapids).
constexpr int64_t kByteChannels = 64, kKeysPerKept = 128;

// The tensors of one target.
template <typename Feature>
struct Target {
  const Problem& problem;
  const Feature* query;         // [N, D]
  const Feature* bank;          // [F, M, D]
  const int64_t* frames;        // [T]
  const int64_t* multiplicity;  // [T, 2]

  const Feature* keys(int64_t slot) const { return bank + frames[slot] * problem.positions * problem.channels; }
};

// A work item by direct products: a group of query tiles against the keys of one slot after another.
template <typename Feature, typename Panel>
class DirectItem {
 public:
  DirectItem(const Target<Feature>& target, const QueryTile* tiles, int64_t group)
      : t_(target), p_(target.problem), tiles_(tiles), group_(group) {
    std::vector<Element> copy;
    for (int64_t g = 0; g < group; ++g) {
      panels_.emplace_back(p_.channels);
      lists_.emplace_back(p_);
      for (int64_t q = 0; q < tiles[g].count(); ++q)
        panels_[g].set(q, as_elements(t_.query + tiles[g].positions[q] * p_.channels, p_.channels, copy));
    }
  }

  void pass(int64_t slot) {
    const int64_t* multiplicity = t_.multiplicity + slot * 2;
    const Element* loaded = nullptr;
    int64_t loaded_first = 0;
    walk_keys(
        p_, tiles_, group_, multiplicity,
        [&](int64_t first, int64_t count) {
          loaded = as_elements(t_.keys(slot) + first * p_.channels, count * p_.channels, loaded_);
          loaded_first = first;
        },
        [&](int64_t g, int64_t first, int64_t rows) {
          panels_[g].multiply(loaded + (first - loaded_first) * p_.channels, rows, tile_.data());
          const TileMultiplicity counts =
              tile_multiplicity(p_, tiles_[g], first, rows, multiplicity, multiplicity_.data());
          if (counts.per_entry) mask_tile(tile_.data(), counts.per_entry, rows);
          lists_[g].take(tile_.data(), counts, rows, slot * p_.positions + first, tiles_[g].count(), found_.data());
        });
  }

  // Calls emit(g, lists) with the lists of slots first .. last of each tile, then starts new lists.
  template <typename Emit>
  void finish(int64_t, int64_t, TopkAffinityReport&, Emit emit) {
    for (int64_t g = 0; g < group_; ++g) {
      emit(g, lists_[g]);
      lists_[g].reset();
    }
  }

 private:
  using Element = typename Panel::Element;

  const Target<Feature>& t_;
  const Problem& p_;
  const QueryTile* tiles_;
  int64_t group_;
  std::vector<float> tile_ = std::vector<float>(kRows * kLanes), multiplicity_ = std::vector<float>(kRows * kLanes);
  std::vector<TileCandidate> found_ = std::vector<TileCandidate>(kRows * kLanes);
  std::vector<Element> loaded_;
  std::vector<Panel> panels_;
  std::vector<NeighborLists> lists_;
};

// The same by int8 products. Falls back to Direct for tiles with too many candidates.
template <typename Feature, typename Direct>
class ByteItem {
 public:
  ByteItem(const Target<Feature>& target, const QueryTile* tiles, int64_t group)
      : t_(target), p_(target.problem), tiles_(tiles), group_(group), lists_(p_) {
    std::vector<float> copy;
    for (int64_t g = 0; g < group; ++g) {
      panels_.emplace_back(p_.channels);
      candidates_.emplace_back(p_.k, p_.positions * (p_.joint ? p_.slots : 1));
      for (int64_t q = 0; q < tiles[g].count(); ++q)
        panels_[g].set(q, as_floats(t_.query + tiles[g].positions[q] * p_.channels, p_.channels, copy));
    }
  }

  void pass(int64_t slot) {
    const int64_t* multiplicity = t_.multiplicity + slot * 2;
    const int64_t stride = byte_stride(p_.channels);
    int64_t loaded_first = 0;
    walk_keys(
        p_, tiles_, group_, multiplicity,
        [&](int64_t first, int64_t count) {
          quantize_keys(t_.keys(slot) + first * p_.channels, count);
          loaded_first = first;
        },
        [&](int64_t g, int64_t first, int64_t rows) {
          if (candidates_[g].overflown()) return;
          panels_[g].multiply(&bytes_[(first - loaded_first) * stride], rows, tile_.data());
          const TileMultiplicity counts =
              tile_multiplicity(p_, tiles_[g], first, rows, multiplicity, multiplicity_.data());
          Exact exact{*this, g};
          candidates_[g].take(tile_.data(), counts, &rows_[first - loaded_first], rows, slot * p_.positions + first,
                              tiles_[g].count(), panels_[g].lanes(), found_.data(), exact);
        });
  }

  // As DirectItem::finish.
  template <typename Emit>
  void finish(int64_t first, int64_t last, TopkAffinityReport& report, Emit emit) {
    for (int64_t g = 0; g < group_; ++g) {
      if (candidates_[g].overflown()) {
        report.overflown += tiles_[g].count();
        Direct direct(t_, &tiles_[g], 1);
        for (int64_t slot = first; slot <= last; ++slot)
          if (t_.frames[slot] >= 0) direct.pass(slot);
        direct.finish(first, last, report, [&](int64_t, const NeighborLists& lists) { emit(g, lists); });
      } else {
        report.bytes += tiles_[g].count(), report.tightened += candidates_[g].tightened();
        Exact exact{*this, g};
        lists_.reset();
        candidates_[g].decide(tiles_[g].count(), panels_[g].lanes(), lists_, exact);
        emit(g, lists_);
      }
      candidates_[g].reset();
    }
  }

 private:
  void quantize_keys(const Feature* keys, int64_t count) {
    const int64_t stride = byte_stride(p_.channels);
    bytes_.resize(count * stride), rows_.resize(count);
    for (int64_t i = 0; i < count; ++i)
      rows_[i] =
          loops().quantize(as_floats(keys + i * p_.channels, p_.channels, copy_), p_.channels, &bytes_[i * stride]);
  }

  // The `exact` of Candidates, for one tile of queries.
  struct Exact {
    ByteItem& item;
    int64_t g;
    Candidates::Scratch& scratch = item.scratch_;
    int64_t at = -1;  // the query whose features are in `features`
    const float* features = nullptr;

    float product(int64_t q, int64_t index) {
      const int64_t channels = item.p_.channels;
      if (q != at)
        features = as_floats(item.t_.query + item.tiles_[g].positions[at = q] * channels, channels, item.query_copy_);
      return dot(features, as_floats(key(index), channels, item.copy_), channels);
    }

    const Feature* key(int64_t index) const {
      return item.t_.keys(index / item.p_.positions) + index % item.p_.positions * item.p_.channels;
    }

    void prefetch(int64_t index) const {
#if defined(__GNUC__)
      const char* bytes = reinterpret_cast<const char*>(key(index));
      for (size_t i = 0; i < item.p_.channels * sizeof(Feature); i += 64) __builtin_prefetch(bytes + i);
#endif
    }

    int64_t multiplicity(int64_t q, int64_t index) const {
      return multiplicity_of(item.p_, item.tiles_[g], q, index % item.p_.positions,
                             item.t_.multiplicity + index / item.p_.positions * 2);
    }
  };

  const Target<Feature>& t_;
  const Problem& p_;
  const QueryTile* tiles_;
  int64_t group_;
  std::vector<int32_t> tile_ = std::vector<int32_t>(kRows * kLanes);
  std::vector<float> multiplicity_ = std::vector<float>(kRows * kLanes), copy_, query_copy_;
  std::vector<TileCandidate> found_ = std::vector<TileCandidate>(kRows * kLanes);
  std::vector<uint8_t> bytes_;
  std::vector<ByteRow> rows_;
  std::vector<BytePanel> panels_;
  NeighborLists lists_;
  std::vector<Candidates> candidates_;
  Candidates::Scratch scratch_;
};

// Number of items into which the `count` tiles of each target are divided: the fewest rounds of all threads that the
// largest group size `most` allows, then as evenly as possible.
int64_t item_count(int64_t targets, int64_t count, int64_t most) {
  const int64_t threads = at::get_num_threads(), a_round = threads * most;
  const int64_t rounds = std::max<int64_t>(1, (targets * count + a_round - 1) / a_round);
  return std::min(count, std::max<int64_t>(1, (rounds * threads + targets - 1) / std::max<int64_t>(1, targets)));
}

template <typename Item, typename Feature>
void run_item(const Target<Feature>& target, const QueryTile* tiles, int64_t group, int64_t b, RowSink& sink,
              TopkAffinityReport& report) {
  const Problem& p = target.problem;
  const int64_t filled = std::count_if(target.frames, target.frames + p.slots, [](int64_t f) { return f >= 0; });
  const float share = p.joint ? 1.0f : 1.0f / static_cast<float>(std::max<int64_t>(filled, 1));
  Item item(target, tiles, group);
  std::vector<Neighbor> list;
  std::vector<float> weights;
  for (int64_t slot = 0; slot < p.slots; ++slot) {
    if (target.frames[slot] >= 0) item.pass(slot);
    if (p.joint && slot + 1 < p.slots) continue;
    item.finish(p.joint ? 0 : slot, slot, report, [&](int64_t g, const NeighborLists& lists) {
      for (int64_t q = 0; q < tiles[g].count(); ++q) {
        lists.list(q, list);
        weights.resize(list.size());
        lists.weigh(q, list, weights.data());
        for (float& weight : weights) weight *= share;
        sink.take(b, tiles[g].positions[q], p.joint ? 0 : slot, list, weights, lists.log_denominator(q));
      }
    });
  }
}

template <typename Item, typename Feature>
TopkAffinityReport run(const Problem& p, int64_t most, RowSink& sink) {
  const std::vector<QueryTile> tiles = query_tiles(p);
  const int64_t count = static_cast<int64_t>(tiles.size()), items = item_count(p.targets, count, most);
  std::atomic<int64_t> bytes{0}, tightened{0}, overflown{0};
  at::parallel_for(0, p.targets * items, 1, [&](int64_t begin, int64_t end) {
    TopkAffinityReport report;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / items, first = i % items * count / items, last = (i % items + 1) * count / items;
      const Target<Feature> target{p, static_cast<const Feature*>(p.query) + b * p.queries * p.channels,
                                   static_cast<const Feature*>(p.bank), p.frames + b * p.slots,
                                   p.multiplicity + b * p.slots * 2};
      run_item<Item>(target, &tiles[first], last - first, b, sink, report);
    }
    bytes += report.bytes, tightened += report.tightened, overflown += report.overflown;
    at::native::cpublas::brgemm_release(true);
  });
  return {.bytes = bytes, .tightened = tightened, .overflown = overflown};
}

}  // namespace

template <typename Feature>
TopkAffinityReport topk_affinity_cpu(const Problem& p, Products products, RowSink& sink) {
  const int64_t keys = p.slots * p.positions;
  return with_panel<Feature>(p.channels, [&]<typename Panel>() {
    using Direct = DirectItem<Feature, Panel>;
    const bool can = !p.softmax_over_all && BytePanel::can_run(p.channels) && keys < kCandidateIndices;
    const bool pays =
        p.channels >= kByteChannels && keys_in_neighborhood(p) * (p.joint ? p.slots : 1) >= kKeysPerKept * p.k;
    if (can && (products == Products::kBytes || (products == Products::kFastest && pays &&
                                                 bytes_are_fastest(p.channels, std::is_same_v<Panel, Bf16VnniPanel>))))
      return run<ByteItem<Feature, Direct>, Feature>(p, byte_group(p), sink);
    return run<Direct, Feature>(p, kGroup, sink);
  });
}

template <typename Feature>
void tile_product_cpu(int64_t queries, int64_t positions, int64_t channels, const Feature* query, const Feature* keys) {
  with_panel<Feature>(channels, [&]<typename Panel>() {
    using Element = typename Panel::Element;
    const int64_t tiles = (queries + kLanes - 1) / kLanes, items = item_count(1, tiles, kGroup);
    at::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> tile(kRows * kLanes);
      std::vector<Element> copy;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i * tiles / items, last = (i + 1) * tiles / items;
        std::vector<Panel> panels(last - first, Panel(channels));
        for (int64_t q = first * kLanes; q < std::min(queries, last * kLanes); ++q)
          panels[q / kLanes - first].set(q % kLanes, as_elements(query + q * channels, channels, copy));
        for (int64_t m = 0; m < positions; m += kRows) {
          const int64_t rows = std::min(kRows, positions - m);
          const Element* loaded = as_elements(keys + m * channels, rows * channels, copy);
          for (Panel& panel : panels) panel.multiply(loaded, rows, tile.data());
        }
      }
      at::native::cpublas::brgemm_release(true);
    });
  });
}

template void tile_product_cpu(int64_t, int64_t, int64_t, const float*, const float*);
template void tile_product_cpu(int64_t, int64_t, int64_t, const c10::BFloat16*, const c10::BFloat16*);

template TopkAffinityReport topk_affinity_cpu<float>(const Problem&, Products, RowSink&);
template TopkAffinityReport topk_affinity_cpu<c10::BFloat16>(const Problem&, Products, RowSink&);
template TopkAffinityReport topk_affinity_cpu<c10::Half>(const Problem&, Products, RowSink&);

}  // namespace timecycle
