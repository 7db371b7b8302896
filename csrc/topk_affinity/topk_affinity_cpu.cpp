// topk_affinity on the CPU: one pass over the context, tile by tile, no matrix.
//
// A work item is a few tiles of kLanes queries of one target. For every slot and every few keys one small product
// leaves a [keys][queries] tile in the first-level cache, from which Neighbours takes maxima, sums and the k largest
// before the next product overwrites it. Where softmax runs over the kept alone, products of bytes may leave candidates
// first (candidates.h). Extra memory: a few MB a thread at most.
#include <ATen/Parallel.h>

#include <atomic>
#include <type_traits>

#include "topk_affinity/byte_panel.h"
#include "topk_affinity/candidates.h"
#include "topk_affinity/neighbors.h"
#include "topk_affinity/product_rates.h"
#include "topk_affinity/query_tiles.h"
#include "topk_affinity/row_sink.h"
#include "topk_affinity/tile_product.h"

namespace timecycle {
namespace {

constexpr int64_t kGroup = 4;  // tiles of queries that take turns on the same keys while those are in the second cache

// The same for products of bytes. The more there are, the fewer times keys are rounded, and the more candidates are
// held at a time: as many as fit beside the rest into two hundredths of the matrix.
int64_t byte_group(const TopkAffinity& s) {
  constexpr int64_t kLeast = 8, kMost = 64, kTypical = 160;  // candidates of a query
  const double lower = static_cast<double>(s.k + 2 * SortedLists::kStep) * sizeof(float);
  const double tile = kLanes * (static_cast<double>(s.channels) + lower + kTypical * sizeof(Candidate));
  const double matrix = 4.0 * s.targets * s.queries * s.slots * s.positions;
  return std::clamp(static_cast<int64_t>(0.018 * matrix / tile / at::get_num_threads()), kLeast, kMost);
}

// Below so many channels, or so many keys for every one that is kept, a second look costs more than the cheaper product
// saves (measured with normalized random features on an Emerald Rapids).
constexpr int64_t kByteChannels = 64, kKeysOfKept = 128;

// What a work item is about.
template <typename Feature>
struct Target {
  const TopkAffinity& shape;
  const Feature* query;         // [N, D]
  const Feature* bank;          // [F, M, D]
  const int64_t* context;       // [T]: frames of the slots
  const int64_t* multiplicity;  // [T, 2]

  const Feature* keys(int64_t slot) const { return bank + context[slot] * shape.positions * shape.channels; }
};

// Queries against the keys of one slot after another, by products that need no second look.
template <typename Feature, typename Panel>
class DirectItem {
 public:
  DirectItem(const Target<Feature>& target, const QueryTile* tiles, int64_t group)
      : t_(target), s_(target.shape), tiles_(tiles), group_(group) {
    std::vector<Element> copy;
    for (int64_t g = 0; g < group; ++g) {
      panels_.emplace_back(s_.channels);
      lists_.emplace_back(s_.k, s_.softmax_scale, s_.softmax_over_all, s_.keep_ties);
      for (int64_t q = 0; q < tiles[g].count(); ++q)
        panels_[g].set(q, prepare(t_.query + tiles[g].positions[q] * s_.channels, s_.channels, copy));
    }
  }

  void pass(int64_t slot) {
    const int64_t* multiplicity = t_.multiplicity + slot * 2;
    const Element* ready = nullptr;
    int64_t ready_first = 0;
    walk(
        s_, tiles_, group_, multiplicity,
        [&](int64_t first, int64_t count) {
          ready = prepare(t_.keys(slot) + first * s_.channels, count * s_.channels, ready_);
          ready_first = first;
        },
        [&](int64_t g, int64_t first, int64_t rows) {
          panels_[g].multiply(ready + (first - ready_first) * s_.channels, rows, tile_.data());
          const float* counts = nullptr;
          if (restricted(s_, multiplicity)) {
            count_tile(s_, tiles_[g], first, rows, multiplicity, counts_.data());
            mask_tile(tile_.data(), counts_.data(), rows);
            counts = counts_.data();
          }
          lists_[g].take(tile_.data(), counts, multiplicity[0], rows, slot * s_.positions + first, tiles_[g].count(),
                         hits_.data());
        });
  }

  // Shows the lists of slots first .. last, emit(g, lists), and begins new ones.
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
  const TopkAffinity& s_;
  const QueryTile* tiles_;
  int64_t group_;
  std::vector<float> tile_ = std::vector<float>(kRows * kLanes), counts_ = std::vector<float>(kRows * kLanes);
  std::vector<Hit> hits_ = std::vector<Hit>(kRows * kLanes);
  std::vector<Element> ready_;
  std::vector<Panel> panels_;
  std::vector<Neighbours> lists_;
};

// The same by products of bytes and a second look. Direct: what serves where the bytes tell too little apart.
template <typename Feature, typename Direct>
class ByteItem {
 public:
  ByteItem(const Target<Feature>& target, const QueryTile* tiles, int64_t group)
      : t_(target),
        s_(target.shape),
        tiles_(tiles),
        group_(group),
        lists_(s_.k, s_.softmax_scale, s_.softmax_over_all, s_.keep_ties) {
    std::vector<float> copy;
    for (int64_t g = 0; g < group; ++g) {
      panels_.emplace_back(s_.channels);
      candidates_.emplace_back(s_.k, s_.positions * (s_.joint ? s_.slots : 1));
      for (int64_t q = 0; q < tiles[g].count(); ++q)
        panels_[g].set(q, widened(t_.query + tiles[g].positions[q] * s_.channels, s_.channels, copy));
    }
  }

  void pass(int64_t slot) {
    const int64_t* multiplicity = t_.multiplicity + slot * 2;
    const int64_t stride = byte_stride(s_.channels);
    int64_t ready_first = 0;
    walk(
        s_, tiles_, group_, multiplicity,
        [&](int64_t first, int64_t count) {
          round_keys(t_.keys(slot) + first * s_.channels, count);
          ready_first = first;
        },
        [&](int64_t g, int64_t first, int64_t rows) {
          if (candidates_[g].overflown()) return;
          panels_[g].multiply(&bytes_[(first - ready_first) * stride], rows, tile_.data());
          const float* counts = nullptr;
          if (restricted(s_, multiplicity)) {
            count_tile(s_, tiles_[g], first, rows, multiplicity, counts_.data());
            counts = counts_.data();
          }
          Exact exact{*this, g};
          candidates_[g].take(tile_.data(), counts, multiplicity[0], &rows_[first - ready_first], rows,
                              slot * s_.positions + first, tiles_[g].count(), panels_[g].lanes(), hits_.data(), exact);
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
          if (t_.context[slot] >= 0) direct.pass(slot);
        direct.finish(first, last, report, [&](int64_t, const Neighbours& lists) { emit(g, lists); });
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
  void round_keys(const Feature* keys, int64_t count) {
    const int64_t stride = byte_stride(s_.channels);
    bytes_.resize(count * stride), rows_.resize(count);
    for (int64_t i = 0; i < count; ++i)
      rows_[i] = round_to_bytes(widened(keys + i * s_.channels, s_.channels, copy_), s_.channels, &bytes_[i * stride]);
  }

  // What Candidates asks about the keys of one tile of queries.
  struct Exact {
    ByteItem& item;
    int64_t g;
    Candidates::Scratch& scratch = item.scratch_;
    int64_t at = -1;  // the query whose features are at hand
    const float* features = nullptr;

    float product(int64_t q, int64_t index) {
      const int64_t channels = item.s_.channels;
      if (q != at)
        features = widened(item.t_.query + item.tiles_[g].positions[at = q] * channels, channels, item.query_copy_);
      return dot(features, widened(key(index), channels, item.copy_), channels);
    }

    const Feature* key(int64_t index) const {
      return item.t_.keys(index / item.s_.positions) + index % item.s_.positions * item.s_.channels;
    }

    void prefetch(int64_t index) const {
#if defined(__GNUC__)
      const char* bytes = reinterpret_cast<const char*>(key(index));
      for (size_t i = 0; i < item.s_.channels * sizeof(Feature); i += 64) __builtin_prefetch(bytes + i);
#endif
    }

    int64_t times(int64_t q, int64_t index) const {
      return times_of(item.s_, item.tiles_[g], q, index % item.s_.positions,
                      item.t_.multiplicity + index / item.s_.positions * 2);
    }
  };

  const Target<Feature>& t_;
  const TopkAffinity& s_;
  const QueryTile* tiles_;
  int64_t group_;
  std::vector<int32_t> tile_ = std::vector<int32_t>(kRows * kLanes);
  std::vector<float> counts_ = std::vector<float>(kRows * kLanes), copy_, query_copy_;
  std::vector<Hit> hits_ = std::vector<Hit>(kRows * kLanes);
  std::vector<uint8_t> bytes_;
  std::vector<ByteRow> rows_;
  std::vector<BytePanel> panels_;
  Neighbours lists_;
  std::vector<Candidates> candidates_;
  Candidates::Scratch scratch_;
};

// Divides `count` tiles of each target into items: as few rounds of all threads as the group size allows, then as even
// as possible.
int64_t items_of(int64_t targets, int64_t count, int64_t most) {
  const int64_t threads = at::get_num_threads(), a_round = threads * most;
  const int64_t rounds = std::max<int64_t>(1, (targets * count + a_round - 1) / a_round);
  return std::min(count, std::max<int64_t>(1, (rounds * threads + targets - 1) / std::max<int64_t>(1, targets)));
}

template <typename Item, typename Feature>
void run_item(const Target<Feature>& target, const QueryTile* tiles, int64_t group, int64_t b, RowSink& sink,
              TopkAffinityReport& report) {
  const TopkAffinity& s = target.shape;
  const int64_t filled = std::count_if(target.context, target.context + s.slots, [](int64_t f) { return f >= 0; });
  const float share = s.joint ? 1.0f : 1.0f / static_cast<float>(std::max<int64_t>(filled, 1));
  Item item(target, tiles, group);
  std::vector<Neighbour> list;
  std::vector<float> weights;
  for (int64_t slot = 0; slot < s.slots; ++slot) {
    if (target.context[slot] >= 0) item.pass(slot);
    if (s.joint && slot + 1 < s.slots) continue;
    item.finish(s.joint ? 0 : slot, slot, report, [&](int64_t g, const Neighbours& lists) {
      for (int64_t q = 0; q < tiles[g].count(); ++q) {
        lists.list(q, list);
        weights.resize(list.size());
        lists.weigh(q, list, weights.data());
        for (float& weight : weights) weight *= share;
        sink.take(b, tiles[g].positions[q], s.joint ? 0 : slot, list, weights, lists.log_denominator(q));
      }
    });
  }
}

template <typename Item, typename Feature>
TopkAffinityReport run(const TopkAffinity& s, int64_t most, RowSink& sink) {
  const std::vector<QueryTile> tiles = make_tiles(s);
  const int64_t count = static_cast<int64_t>(tiles.size()), items = items_of(s.targets, count, most);
  std::atomic<int64_t> bytes{0}, tightened{0}, overflown{0};
  at::parallel_for(0, s.targets * items, 1, [&](int64_t begin, int64_t end) {
    TopkAffinityReport report;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / items, first = i % items * count / items, last = (i % items + 1) * count / items;
      const Target<Feature> target{s, static_cast<const Feature*>(s.query) + b * s.queries * s.channels,
                                   static_cast<const Feature*>(s.bank), s.frames + b * s.slots,
                                   s.multiplicity + b * s.slots * 2};
      run_item<Item>(target, &tiles[first], last - first, b, sink, report);
    }
    bytes += report.bytes, tightened += report.tightened, overflown += report.overflown;
    at::native::cpublas::brgemm_release(true);
  });
  return {.bytes = bytes, .tightened = tightened, .overflown = overflown};
}

}  // namespace

template <typename Feature>
TopkAffinityReport topk_affinity_cpu(const TopkAffinity& s, Products products, RowSink& sink) {
  const int64_t keys = s.slots * s.positions;
  const auto run_with = [&]<typename Panel>() {
    using Direct = DirectItem<Feature, Panel>;
    const bool can = !s.softmax_over_all && BytePanel::can_run(s.channels) && keys < kCandidateIndices;
    const bool pays =
        s.channels >= kByteChannels && keys_in_neighborhood(s) * (s.joint ? s.slots : 1) >= kKeysOfKept * s.k;
    if (can && (products == Products::kBytes ||
                (products == Products::kFastest && pays && bytes_win(s.channels, std::is_same_v<Panel, PairPanel>))))
      return run<ByteItem<Feature, Direct>, Feature>(s, byte_group(s), sink);
    return run<Direct, Feature>(s, kGroup, sink);
  };
  if constexpr (std::is_same_v<Feature, c10::BFloat16>)
    if (pairs_win(s.channels)) return run_with.template operator()<PairPanel>();
  return run_with.template operator()<FloatPanel>();
}

template <typename Feature>
void tile_product_cpu(int64_t queries, int64_t positions, int64_t channels, const Feature* query, const Feature* keys) {
  const auto run_with = [&]<typename Panel>() {
    using Element = typename Panel::Element;
    const int64_t tiles = (queries + kLanes - 1) / kLanes, items = items_of(1, tiles, kGroup);
    at::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> tile(kRows * kLanes);
      std::vector<Element> copy;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i * tiles / items, last = (i + 1) * tiles / items;
        std::vector<Panel> panels(last - first, Panel(channels));
        for (int64_t q = first * kLanes; q < std::min(queries, last * kLanes); ++q)
          panels[q / kLanes - first].set(q % kLanes, prepare(query + q * channels, channels, copy));
        for (int64_t m = 0; m < positions; m += kRows) {
          const int64_t rows = std::min(kRows, positions - m);
          const Element* ready = prepare(keys + m * channels, rows * channels, copy);
          for (Panel& panel : panels) panel.multiply(ready, rows, tile.data());
        }
      }
      at::native::cpublas::brgemm_release(true);
    });
  };
  if constexpr (std::is_same_v<Feature, c10::BFloat16>)
    if (pairs_win(channels)) return run_with.template operator()<PairPanel>();
  run_with.template operator()<FloatPanel>();
}

template void tile_product_cpu(int64_t, int64_t, int64_t, const float*, const float*);
template void tile_product_cpu(int64_t, int64_t, int64_t, const c10::BFloat16*, const c10::BFloat16*);

template TopkAffinityReport topk_affinity_cpu<float>(const TopkAffinity&, Products, RowSink&);
template TopkAffinityReport topk_affinity_cpu<c10::BFloat16>(const TopkAffinity&, Products, RowSink&);
template TopkAffinityReport topk_affinity_cpu<c10::Half>(const TopkAffinity&, Products, RowSink&);

}  // namespace timecycle
