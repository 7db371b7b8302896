#include "topk_affinity/panels.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <vector>

namespace timecycle {
namespace {

constexpr int64_t kChannels = 256;  // of the product that is timed
constexpr int kRounds = 15;         // the fastest counts
constexpr int kTiles = 4;           // of a round
// The int8 product must take less than this share of the direct product's time. Quantizing, scanning and deciding come
// on top: about as long as the int8 product itself where that has four times the rate of float
// (benchmarks/bench_topk_affinity.py).
constexpr double kWorthIt = 0.6;

template <typename Panel, typename Key, typename Value>
double rate(const Panel& panel, const std::vector<Key>& keys, std::vector<Value>& tile) {
  double fastest = std::numeric_limits<double>::infinity();
  for (int round = 0; round < kRounds; ++round) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kTiles; ++i) panel.multiply(keys.data(), kRows, tile.data());
    const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
    fastest = std::min(fastest, took.count());
  }
  return kTiles * kRows * kLanes * kChannels / fastest;
}

ProductRates measure() {
  ProductRates rates{};
  std::vector<float> tile(kRows * kLanes);
  rates.float32 = rate(FloatPanel(kChannels), std::vector<float>(kRows * kChannels, 1.0f), tile);
  if (Bf16VnniPanel::can_run(kChannels))
    rates.bfloat16 = rate(Bf16VnniPanel(kChannels), std::vector<c10::BFloat16>(kRows * kChannels, 1.0f), tile);
  if (BytePanel::can_run(kChannels)) {
    std::vector<int32_t> integers(kRows * kLanes);
    rates.int8 = rate(BytePanel(kChannels), std::vector<uint8_t>(kRows * kChannels, 1), integers);
  }
  at::native::cpublas::brgemm_release(true);
  return rates;
}

}  // namespace

const ProductRates& product_rates() {
  static const ProductRates rates = measure();
  return rates;
}

bool bfloat16_is_fastest(int64_t channels) {
  return Bf16VnniPanel::can_run(channels) && product_rates().bfloat16 > product_rates().float32;
}

bool bytes_are_fastest(int64_t channels, bool bfloat16) {
  if (!BytePanel::can_run(channels)) return false;
  const ProductRates& rates = product_rates();
  return (bfloat16 ? rates.bfloat16 : rates.float32) < kWorthIt * rates.int8;
}

}  // namespace timecycle
