// Three products of the forward's size - the logits again, then both gradients - in blocks of kRows keys and a strip of
// queries, so that no more than a block of the matrix is ever there. Threads divide the keys of a slot between them: a
// key's gradient has one owner, and the queries' is gathered strip by strip.
#include <ATen/Parallel.h>
#include <c10/util/Half.h>

#include <cmath>
#include <limits>
#include <mutex>
#include <type_traits>
#include <vector>

#include "tile_product.h"
#include "topk_affinity_backward.h"

namespace timecycle {
namespace {

constexpr int64_t kPanels = 4;                // of kLanes queries in a strip
constexpr int64_t kStrip = kPanels * kLanes;  // queries whose gradients are gathered together

// C [M][N] += A [M][K] B [K][N]; the rows of A are `stride` apart. B of bfloat16 has rows in pairs: [K / 2][N][2].
void multiply_add(int64_t m, int64_t n, int64_t k, const float* a, int64_t stride, const float* b, float* c) {
  at::native::cpublas::brgemm(m, n, k, stride, n, n, /*add_C=*/true, a, b, c);
}

void multiply_add(int64_t m, int64_t n, int64_t k, const c10::BFloat16* a, int64_t stride, const c10::BFloat16* b,
                  float* c) {
  at::native::cpublas::brgemm(m, n, k + k % 2, stride, n, n, /*add_C=*/true, a, b, c, /*is_vnni=*/true);
}

// Rows [count][D] as the right side B of multiply_add: float as they are, bfloat16 in pairs. Where count is odd the
// last pair is filled up with 0. As kRows is even, a block of rows starts at the same place in both.
const float* right_side(const float* rows, int64_t, int64_t, std::vector<float>&) { return rows; }

const c10::BFloat16* right_side(const c10::BFloat16* rows, int64_t count, int64_t channels,
                                std::vector<c10::BFloat16>& out) {
  out.assign((count + count % 2) * channels, c10::BFloat16(0.0f));
  for (int64_t row = 0; row < count; ++row)
    for (int64_t d = 0; d < channels; ++d) out[(row / 2 * channels + d) * 2 + row % 2] = rows[row * channels + d];
  return out.data();
}

void round_tile(const float* tile, int64_t count, float* out) { std::copy_n(tile, count, out); }

void round_tile(const float* tile, int64_t count, c10::BFloat16* out) {
  round_to_bfloat16(tile, count, reinterpret_cast<uint16_t*>(out));
}

// One strip of queries against one slot.
template <typename Panel>
class Strip {
 public:
  using Element = typename Panel::Element;

  Strip(const TopkAffinity& shape, const Element* queries, int64_t first, int64_t count, const float* denominators,
        const float* mean)
      : s_(shape), first_(first), count_(count), panels_(kPanels, Panel(shape.channels)) {
    for (int64_t q = 0; q < kStrip; ++q) {
      // exp(x - inf) = 0: for queries that are not there, and for those that may see nothing.
      shift_[q] = std::numeric_limits<float>::infinity(), factor_[q] = 0.0f, row_[q] = column_[q] = 0;
      if (q >= count) continue;
      panels_[q / kLanes].set(q % kLanes, queries + q * s_.channels);
      const int64_t at = q * s_.groups();
      if (std::isfinite(denominators[at])) shift_[q] = denominators[at], factor_[q] = -mean[at];
      if (s_.width > 0) row_[q] = (first + q) / s_.width, column_[q] = static_cast<int32_t>((first + q) % s_.width);
    }
    queries_ = right_side(queries, count, s_.channels, pairs_);
  }

  // What one thread needs beside the strip.
  struct Scratch {
    std::vector<float> tile = std::vector<float>(kRows * kLanes), counts = std::vector<float>(kRows * kLanes);
    std::vector<Element> rounded = std::vector<Element>(kRows * kLanes);
    std::vector<Element> share = std::vector<Element>(kRows * kStrip);       // [keys][queries]
    std::vector<Element> transposed = std::vector<Element>(kStrip * kRows);  // [queries][keys]
  };

  // Keys first_key .. first_key + rows - 1 of a slot, as rows and as a right side: adds to d_keys [rows][D] and
  // d_queries [kStrip][D].
  void block(const Element* keys, const Element* right_keys, int64_t first_key, int64_t rows, const int64_t* copies,
             Scratch& scratch, float* d_keys, float* d_queries) {
    if (out_of_reach(first_key, rows, copies)) return;
    if (rows % 2) std::fill(scratch.transposed.begin(), scratch.transposed.end(), Element(0.0f));
    for (int64_t p = 0; p < kPanels; ++p) {
      panels_[p].multiply(keys, rows, scratch.tile.data());
      const bool restricted = s_.width > 0 && copies[0] != copies[1];
      if (restricted) count(p, first_key, rows, copies, scratch);
      column_share(scratch.tile.data(), restricted ? scratch.counts.data() : nullptr, static_cast<float>(copies[0]),
                   rows, &shift_[p * kLanes], &factor_[p * kLanes], s_.scale);
      round_tile(scratch.tile.data(), rows * kLanes, scratch.rounded.data());
      for (int64_t key = 0; key < rows; ++key)
        std::copy_n(&scratch.rounded[key * kLanes], kLanes, &scratch.share[key * kStrip + p * kLanes]);
      for (int64_t q = 0; q < kLanes; ++q)
        for (int64_t key = 0; key < rows; ++key)
          scratch.transposed[(p * kLanes + q) * kRows + key] = scratch.rounded[key * kLanes + q];
    }
    multiply_add(rows, s_.channels, count_, scratch.share.data(), kStrip, queries_, d_keys);
    multiply_add(count_, s_.channels, rows, scratch.transposed.data(), kRows, right_keys, d_queries);
  }

 private:
  bool out_of_reach(int64_t first_key, int64_t rows, const int64_t* copies) const {
    if (copies[0] == 0 && (copies[1] == 0 || s_.width == 0)) return true;
    if (s_.width == 0 || copies[1] > 0) return false;
    const int64_t top = first_key / s_.width, bottom = (first_key + rows - 1) / s_.width;
    const int64_t away = std::max(top - row_[count_ - 1], row_[0] - bottom);
    return away >= static_cast<int64_t>(s_.reach.size());
  }

  void count(int64_t p, int64_t first_key, int64_t rows, const int64_t* copies, Scratch& scratch) const {
    for (int64_t key = 0; key < rows;) {
      const int64_t y = (first_key + key) / s_.width, x = (first_key + key) % s_.width;
      const int64_t run = std::min(rows - key, s_.width - x);
      alignas(64) int32_t allowed[kLanes];
      for (int64_t q = 0; q < kLanes; ++q) {
        const int64_t away = std::abs(y - row_[p * kLanes + q]);
        allowed[q] = away < static_cast<int64_t>(s_.reach.size()) ? static_cast<int32_t>(s_.reach[away]) : -1;
      }
      count_row(&scratch.counts[key * kLanes], run, static_cast<int32_t>(x), &column_[p * kLanes], allowed,
                static_cast<float>(copies[0]), static_cast<float>(copies[1]));
      key += run;
    }
  }

  const TopkAffinity& s_;
  int64_t first_, count_;
  std::vector<Panel> panels_;
  std::vector<Element> pairs_;
  const Element* queries_;  // as a right side
  float shift_[kStrip], factor_[kStrip];
  int64_t row_[kStrip];
  int32_t column_[kStrip];
};

template <typename Panel, typename Element>
void run(const TopkAffinity& s, const Element* query, const Element* bank, const int64_t* frames, const int64_t* copies,
         const float* denominators, const float* mean, float* d_query, float* d_bank) {
  const int64_t blocks = (s.positions + kRows - 1) / kRows;
  std::mutex gathering;
  for (int64_t b = 0; b < s.targets; ++b)
    for (int64_t slot = 0; slot < s.slots; ++slot) {
      const int64_t frame = frames[b * s.slots + slot], group = s.joint ? 0 : slot;
      if (frame < 0) continue;
      const Element* keys = bank + frame * s.positions * s.channels;
      float* d_keys = d_bank + frame * s.positions * s.channels;
      std::vector<Element> pairs;
      const Element* right_keys = right_side(keys, s.positions, s.channels, pairs);
      for (int64_t first = 0; first < s.queries; first += kStrip) {
        const int64_t row = b * s.queries + first, count = std::min(kStrip, s.queries - first);
        Strip<Panel> strip(s, query + row * s.channels, first, count, denominators + row * s.groups() + group,
                           mean + row * s.groups() + group);
        at::parallel_for(
            0, blocks, (blocks + at::get_num_threads() - 1) / at::get_num_threads(), [&](int64_t begin, int64_t end) {
              typename Strip<Panel>::Scratch scratch;
              Strip<Panel> own = strip;  // the panels hold scratch memory of their own
              std::vector<float> gathered(kStrip * s.channels, 0.0f);
              for (int64_t m = begin * kRows; m < std::min(end * kRows, s.positions); m += kRows)
                strip.block(keys + m * s.channels, right_keys + m * s.channels, m, std::min(kRows, s.positions - m),
                            copies + (b * s.slots + slot) * 2, scratch, d_keys + m * s.channels, gathered.data());
              at::native::cpublas::brgemm_release(false);
              const std::lock_guard<std::mutex> lock(gathering);
              for (int64_t i = 0; i < count * s.channels; ++i) d_query[row * s.channels + i] += gathered[i];
            });
      }
    }
}

}  // namespace

template <typename Feature>
void topk_affinity_backward_cpu(const TopkAffinity& s, const Feature* query, const Feature* bank, const int64_t* frames,
                                const int64_t* copies, const float* denominators, const float* mean, float* d_query,
                                float* d_bank) {
  if constexpr (std::is_same_v<Feature, c10::BFloat16>) {
    run<PairPanel>(s, query, bank, frames, copies, denominators, mean, d_query, d_bank);
  } else {
    run<FloatPanel>(s, query, bank, frames, copies, denominators, mean, d_query, d_bank);
  }
}

template void topk_affinity_backward_cpu(const TopkAffinity&, const float*, const float*, const int64_t*,
                                         const int64_t*, const float*, const float*, float*, float*);
template void topk_affinity_backward_cpu(const TopkAffinity&, const c10::BFloat16*, const c10::BFloat16*,
                                         const int64_t*, const int64_t*, const float*, const float*, float*, float*);

}  // namespace timecycle
