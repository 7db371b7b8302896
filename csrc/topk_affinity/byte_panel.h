// The tile of integer products of keys and queries rounded to bytes, and the error bound that comes with it.
//
// With q = q~ + dq, k = k~ + dk and both approximations of the form low + scale * byte,
//     <q, k> - <q~, k~> = <dq, k> + <q~, dk>,   at most   |dq| |k| + |q~| |dk|   (Cauchy and Schwarz),
// and <q~, k~> is the integer product of the bytes, corrected by sums that each side knows of itself.
#pragma once

#include <ATen/native/CPUBlas.h>

#include <cmath>
#include <cstdint>
#include <exception>
#include <vector>

#include "simd/byte_epilogue.h"

namespace timecycle {

// Bytes of a vector of D channels: the products take them in fours.
inline int64_t byte_stride(int64_t channels) { return (channels + 3) / 4 * 4; }

// A panel of queries as signed bytes, [D / 4][kLanes][4]; unused lanes stay 0.
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
    const ByteRow row = round_to_bytes(query, channels_, unsigned_.data());
    // Signed: 128 less, which the offset makes up for.
    int64_t total = 0;
    for (int64_t d = 0; d < channels_; ++d) {
      const int32_t byte = static_cast<int32_t>(unsigned_[d]) - 128;
      total += byte;
      data_[(d / 4 * kLanes + lane) * 4 + d % 4] = static_cast<int8_t>(byte);
    }
    const float middle = row.low + 128.0f * row.scale, count = static_cast<float>(channels_);
    // The float products that decide may be off by D * 2^-24 of |q| |k|, and so may the norms; the factors beside the
    // two terms cover the rounding of the bound itself.
    const float sums = 8.0f * count * 0x1p-24f;
    lanes_.unit[lane] = row.scale;
    lanes_.total[lane] = static_cast<float>(total);
    lanes_.offset[lane] = middle / row.scale;
    lanes_.residual[lane] = (1.01f * row.residual + sums * row.norm) / row.scale;
    lanes_.norm[lane] = 1.01f * (row.norm + row.residual) / row.scale;
    // Every term of the correction is at most the product of both sides' parts, and is rounded a few times.
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
    const uint8_t keys[4] = {1, 2, 255, 255};
    std::vector<int32_t> tile(kLanes);
    try {
      panel.multiply(keys, 1, tile.data());
    } catch (const std::exception&) {
      return false;
    }
    return tile[3] == -128 + 2 * 127 - 255 * 128 + 255 * 127 && tile[2] == 0;
#else
    return false;
#endif
  }

  int64_t channels_;
  std::vector<int8_t> data_;
  std::vector<uint8_t> unsigned_;
  ByteLanes lanes_{};
};

}  // namespace timecycle
