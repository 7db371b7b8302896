#include "topk_affinity/product_rates.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <vector>

#include "topk_affinity/byte_panel.h"
#include "topk_affinity/tile_product.h"

namespace timecycle {
namespace {

constexpr int64_t kChannels = 256;  // of the product that is timed
constexpr int kRounds = 15;         // of which the fastest counts: whatever else the machine does only slows
constexpr int kTiles = 4;           // a round
// What a product of bytes may at most take of the direct one's time. The rest goes to rounding, scanning and deciding,
// which take about as long as the product itself at four times the rate of floats (benchmarks/bench_topk_affinity.py).
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
  rates.floats = rate(FloatPanel(kChannels), std::vector<float>(kRows * kChannels, 1.0f), tile);
  if (PairPanel::can_run(kChannels))
    rates.pairs = rate(PairPanel(kChannels), std::vector<c10::BFloat16>(kRows * kChannels, 1.0f), tile);
  if (BytePanel::can_run(kChannels)) {
    std::vector<int32_t> integers(kRows * kLanes);
    rates.bytes = rate(BytePanel(kChannels), std::vector<uint8_t>(kRows * kChannels, 1), integers);
  }
  at::native::cpublas::brgemm_release(true);
  return rates;
}

}  // namespace

const ProductRates& product_rates() {
  static const ProductRates rates = measure();
  return rates;
}

bool pairs_win(int64_t channels) {
  return PairPanel::can_run(channels) && product_rates().pairs > product_rates().floats;
}

bool bytes_win(int64_t channels, bool pairs) {
  if (!BytePanel::can_run(channels)) return false;
  const ProductRates& rates = product_rates();
  return (pairs ? rates.pairs : rates.floats) < kWorthIt * rates.bytes;
}

}  // namespace timecycle
