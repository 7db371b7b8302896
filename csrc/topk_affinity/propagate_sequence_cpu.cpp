// propagate_sequence on CPU threads. Each target reads the labels of earlier ones, so there is a barrier after each.
#include <atomic>
#include <barrier>
#include <functional>
#include <thread>
#include <vector>

#include "topk_affinity/propagate_sequence.h"

namespace timecycle {
namespace {

class Threads {
 public:
  static constexpr int kLanes = 1, kClasses = 16;

  Threads(int rank, int count, std::barrier<>& meet) : rank_(rank), count_(count), meet_(meet) {}
  int64_t group() const { return rank_; }
  int64_t groups() const { return count_; }
  int lane() const { return 0; }
  void barrier() { meet_.arrive_and_wait(); }

  void lower(uint32_t* number, uint32_t value) { replace_if(std::less<>(), number, value); }
  void raise(uint32_t* number, uint32_t value) { replace_if(std::greater<>(), number, value); }

 private:
  // Atomically: if compare(value, *number), *number = value.
  template <typename Compare>
  static void replace_if(Compare compare, uint32_t* number, uint32_t value) {
    std::atomic_ref shared(*number);
    uint32_t now = shared.load(std::memory_order_relaxed);
    while (compare(value, now) && !shared.compare_exchange_weak(now, value, std::memory_order_relaxed)) {
    }
  }

  int rank_, count_;
  std::barrier<>& meet_;
};

}  // namespace

void propagate_sequence_cpu(const Sequence& call, int threads) {
  std::barrier<> meet(threads);
  const auto work = [&](int rank) {
    Threads team(rank, threads, meet);
    propagate_sequence(call, team);
  };
  std::vector<std::jthread> others;
  for (int rank = 1; rank < threads; ++rank) others.emplace_back(work, rank);
  work(0);
}

}  // namespace timecycle
