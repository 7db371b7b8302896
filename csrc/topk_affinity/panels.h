// Panels: kLanes queries laid out for oneDNN's small matrix products, which fill a tile [keys][kLanes] of dot products.
// There are panels of float, bfloat16 and int8; which is fastest on this chip is measured (panels.cpp).
#pragma once

#include <ATen/native/CPUBlas.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <exception>
#include <type_traits>
#include <vector>

#include "simd/loops.h"
#include "simd/rows.h"

namespace timecycle {

// Multiply-adds per nanosecond and thread; 0 for types that the chip or this PyTorch cannot multiply. The ratios depend
// on the chip: bfloat16 takes half to twice the time of float, int8 down to a sixteenth.
struct ProductRates {
  double float32, bfloat16, int8;
};

// Measured at the first call, on the calling thread: takes a few milliseconds.
const ProductRates& product_rates();

// Whether bfloat16 features of this many channels should be multiplied as such; as floats otherwise.
bool bfloat16_is_fastest(int64_t channels);

// Whether int8 products, including the choice among the candidates they leave (candidates.h), are faster than direct
// products, in bfloat16 or float.
bool bytes_are_fastest(int64_t channels, bool bfloat16);

// Channels summed in one chain. A single chain over all channels has twice the rounding error of PyTorch's product, so
// that near-ties at the k-th place would differ from the reference.
constexpr int64_t kChain = 128;

// Queries as floats, [D][kLanes]; unused lanes stay 0.
class FloatPanel {
 public:
  using Element = float;

  explicit FloatPanel(int64_t channels) : channels_(channels), data_(channels * kLanes, 0.0f) {}

  void set(int64_t lane, const float* query) {
    for (int64_t d = 0; d < channels_; ++d) data_[d * kLanes + lane] = query[d];
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

// n features in the type that a panel multiplies: converted to float, or bfloat16 unchanged.
template <typename Feature>
const float* as_elements(const Feature* features, int64_t n, std::vector<float>& copy) {
  return as_floats(features, n, copy);
}

inline const c10::BFloat16* as_elements(const c10::BFloat16* features, int64_t, std::vector<c10::BFloat16>&) {
  return features;
}

// Whether this chip and this PyTorch multiply such a panel, whose lane 2 is 0 and lane 3 has that product with the key.
template <typename Panel, typename Key, typename Value>
bool can_multiply(const Panel& panel, const Key* key, Value product) {
  std::vector<Value> tile(kLanes);
  try {
    panel.multiply(key, 1, tile.data());
  } catch (const std::exception&) {
    return false;
  }
  return tile[3] == product && tile[2] == Value(0);
}

// Queries in the layout of the chip's bfloat16 products (VNNI): pairs of channels side by side, [D / 2][kLanes][2].
class Bf16VnniPanel {
 public:
  using Element = c10::BFloat16;

  explicit Bf16VnniPanel(int64_t channels) : channels_(channels), data_(channels * kLanes, c10::BFloat16(0.0f)) {}

  // Whether this chip and this PyTorch multiply such panels. The number of channels must be even.
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
    Bf16VnniPanel panel(2);
    const c10::BFloat16 one[2] = {1.0f, 2.0f};
    panel.set(3, one);
    return can_multiply(panel, one, 5.0f);
#else
    return false;
#endif
  }

  int64_t channels_;
  std::vector<c10::BFloat16> data_;
};

// Bytes of a quantized vector of D channels: a multiple of 4, as the products require.
inline int64_t byte_stride(int64_t channels) { return (channels + 3) / 4 * 4; }

// Quantized queries as signed bytes, [D / 4][kLanes][4]; unused lanes stay 0.
//
// With q = q~ + dq, k = k~ + dk and both approximations of the form low + scale * byte,
//     <q, k> - <q~, k~> = <dq, k> + <q~, dk>,   at most   |dq| |k| + |q~| |dk|   (Cauchy-Schwarz),
// and <q~, k~> is the integer product of the bytes plus corrections from the sums of both sides.
class BytePanel {
 public:
  explicit BytePanel(int64_t channels)
      : channels_(channels), data_(byte_stride(channels) * kLanes), unsigned_(byte_stride(channels)) {}

  // Sums of products of two bytes must fit an int32.
  static bool can_run(int64_t channels) {
    static const bool chip_can = probe();
    return chip_can && channels <= (int64_t{1} << 15);
  }

  void set(int64_t lane, const float* query) {
    const ByteRow row = loops().quantize(query, channels_, unsigned_.data());
    // Signed: 128 less, which the offset compensates.
    int64_t total = 0;
    for (int64_t d = 0; d < channels_; ++d) {
      const int32_t byte = static_cast<int32_t>(unsigned_[d]) - 128;
      total += byte;
      data_[(d / 4 * kLanes + lane) * 4 + d % 4] = static_cast<int8_t>(byte);
    }
    const float middle = row.low + 128.0f * row.scale, count = static_cast<float>(channels_);
    // The float products that decide may have an error of D * 2^-24 |q| |k|, and so may the norms; the factors 1.01
    // cover the rounding of the bound itself.
    const float sums = 8.0f * count * 0x1p-24f;
    lanes_.unit[lane] = row.scale;
    lanes_.total[lane] = static_cast<float>(total);
    lanes_.offset[lane] = middle / row.scale;
    lanes_.residual[lane] = (1.01f * row.residual + sums * row.norm) / row.scale;
    lanes_.norm[lane] = 1.01f * (row.norm + row.residual) / row.scale;
    // Every term of the correction is at most the product of both sides' `parts`, and is rounded a few times.
    lanes_.parts[lane] =
        0x1p-20f * (row.parts / row.scale + (128.0f + std::abs(middle) / row.scale) * std::sqrt(count));
  }

  // tile [rows][kLanes] = keys [rows][byte_stride(D)] times the panel.
  void multiply(const uint8_t* keys, int64_t rows, int32_t* tile) const {
    const int64_t stride = byte_stride(channels_);
    at::native::cpublas::brgemm(rows, kLanes, stride, stride, kLanes, kLanes, /*add_C=*/false, keys, data_.data(), tile,
                                /*is_vnni=*/true);
  }

  const ByteLanes& lanes() const { return lanes_; }

 private:
  static bool probe() {
#if defined(CPUBLAS_BRGEMM_U8I8I32)
    BytePanel panel(4);
    const float query[4] = {0.0f, 255.0f, 0.0f, 255.0f};  // bytes -128, 127, -128, 127
    panel.set(3, query);
    const uint8_t key[4] = {1, 2, 255, 255};
    return can_multiply(panel, key, int32_t{-128 + 2 * 127 - 255 * 128 + 255 * 127});
#else
    return false;
#endif
  }

  int64_t channels_;
  std::vector<int8_t> data_;
  std::vector<uint8_t> unsigned_;
  ByteLanes lanes_{};
};

// Calls run<Panel>() with the panel that is fastest for direct products of features of that type.
template <typename Feature, typename Function>
auto with_panel(int64_t channels, const Function& run) {
  if constexpr (std::is_same_v<Feature, c10::BFloat16>)
    if (bfloat16_is_fastest(channels)) return run.template operator()<Bf16VnniPanel>();
  return run.template operator()<FloatPanel>();
}

}  // namespace timecycle
