// The tile [keys][kLanes] of dot products of some keys with a panel of queries, through oneDNN's small products.
#pragma once

#include <ATen/native/CPUBlas.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <vector>

#include "simd/column_epilogue.h"
#include "simd/row_arithmetic.h"

namespace timecycle {

// Channels summed in one chain. One chain over all would round off twice as much as PyTorch's product does, and
// near-ties at the k-th place would fall the other way.
constexpr int64_t kChain = 128;

// A panel of queries as floats, [D][kLanes]; unused lanes stay 0.
class FloatPanel {
 public:
  using Element = float;

  explicit FloatPanel(int64_t channels) : channels_(channels), data_(channels * kLanes, 0.0f) {}

  template <typename Feature>
  void set(int64_t lane, const Feature* query) {
    for (int64_t d = 0; d < channels_; ++d) data_[d * kLanes + lane] = static_cast<float>(query[d]);
  }

  // The first `count` lanes at once: queries [count][D].
  void set_rows(const float* queries, int64_t count) { transpose(queries, count, channels_, kLanes, data_.data()); }

  // tile [rows][kLanes] = keys [rows][D] times the panel.
  void multiply(const float* keys, int64_t rows, float* tile) const {
    for (int64_t d = 0; d < channels_; d += kChain)
      at::native::cpublas::brgemm(rows, kLanes, std::min(kChain, channels_ - d), channels_, kLanes, kLanes,
                                  /*add_C=*/d > 0, keys + d, &data_[d * kLanes], tile);
  }

 private:
  int64_t channels_;
  std::vector<float> data_;
};

// n features as floats: themselves, or a converted copy.
inline const float* widened(const float* features, int64_t, std::vector<float>&) { return features; }

template <typename Feature>
const float* widened(const Feature* features, int64_t n, std::vector<float>& copy) {
  copy.resize(n);
  convert(features, n, copy.data());
  return copy.data();
}

// n keys as a panel multiplies them.
template <typename Feature>
const float* prepare(const Feature* keys, int64_t n, std::vector<float>& copy) {
  return widened(keys, n, copy);
}

inline const c10::BFloat16* prepare(const c10::BFloat16* keys, int64_t, std::vector<c10::BFloat16>&) { return keys; }

// A panel of bfloat16 queries for the chip's bfloat16 products: pairs of channels side by side, [D / 2][kLanes][2].
class PairPanel {
 public:
  using Element = c10::BFloat16;

  explicit PairPanel(int64_t channels) : channels_(channels), data_(channels * kLanes, c10::BFloat16(0.0f)) {}

  // Whether this chip and this PyTorch multiply such panels. An odd number of channels has no pairs.
  static bool can_run(int64_t channels) {
    static const bool chip_can = probe();
    return chip_can && channels % 2 == 0;
  }

  void set(int64_t lane, const c10::BFloat16* query) {
    for (int64_t d = 0; d < channels_; ++d) data_[(d / 2 * kLanes + lane) * 2 + d % 2] = query[d];
  }

  // tile [rows][kLanes] = keys [rows][D] times the panel, accumulated in float.
  void multiply(const c10::BFloat16* keys, int64_t rows, float* tile) const {
    at::native::cpublas::brgemm(rows, kLanes, channels_, channels_, kLanes, kLanes, /*add_C=*/false, keys, data_.data(),
                                tile, /*is_vnni=*/true);
  }

 private:
  static bool probe() {
#if defined(__x86_64__) && defined(__GNUC__)
    // Without the instructions oneDNN may emulate them, which is slower than float.
    if (!__builtin_cpu_supports("avx512bf16")) return false;
#else
    return false;
#endif
    PairPanel panel(2);
    const c10::BFloat16 one[2] = {1.0f, 2.0f};
    panel.set(3, one);
    std::vector<float> tile(kLanes);
    try {
      panel.multiply(one, 1, tile.data());
    } catch (const std::exception&) {
      return false;
    }
    return tile[3] == 5.0f && tile[2] == 0.0f;
  }

  int64_t channels_;
  std::vector<c10::BFloat16> data_;
};

}  // namespace timecycle
