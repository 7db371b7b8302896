// A wave of attend: some queries of some samples whose logits with all keys are held at once, within a bound.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "attention/attention.h"
#include "attention/attention_tile.h"
#include "simd/row_arithmetic.h"
#include "sizes.h"

namespace timecycle {

constexpr int64_t kChunk = 128;                 // keys of a tile
constexpr int64_t kHeld = int64_t{1} << 19;     // logits of a wave: 2 MB, and in the gradient as much again
constexpr int64_t kFewest = 64;                 // queries of a wave, if that many are there
constexpr int64_t kPartial = int64_t{1} << 21;  // floats of partial sums
constexpr int64_t kTasks = 16;                  // that sums are parted into, whatever the number of threads

// C [M][N] (+)= A [M][K] B [K][N], whose rows are lda, ldb and ldc apart.
inline void multiply(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
                     float* c, int64_t ldc, bool add) {
  if (m > 0 && n > 0 && k > 0) at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, a, b, c);
}

// Calls function(i) for 0 <= i < count on all threads; multiply may be used.
template <typename Function>
void for_each(int64_t count, const Function& function) {
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) function(i);
    at::native::cpublas::brgemm_release(true);
  });
}

// Samples first .. last - 1, queries begin .. end - 1. With only a part of the queries there is one sample.
struct Wave {
  int64_t first, last, begin, end;
  int64_t samples() const { return last - first; }
  int64_t width() const { return end - begin; }
};

// All waves, sample by sample. The division depends on shapes alone, and so do the bits of the sums.
inline std::vector<Wave> waves_of(const Attend& call) {
  const int64_t together =
      std::max<int64_t>(1, kHeld / std::max<int64_t>(1, checked_product({call.keys, call.queries})));
  const int64_t most = std::max(kFewest, kHeld / call.keys);
  const int64_t parts = (call.queries + most - 1) / most;
  std::vector<Wave> waves;
  for (int64_t b = 0; b < call.samples; b += together)
    for (int64_t part = 0; part < parts; ++part)
      waves.push_back(
          {b, std::min(call.samples, b + together), call.queries * part / parts, call.queries * (part + 1) / parts});
  return waves;
}

// Some rows of the output that a shift lets a wave's queries add to, and the first of these queries.
struct Overlap {
  int64_t row, count, query;  // the query counted from the wave's first
};

inline Overlap overlap(const Attend& call, const Wave& wave, int64_t s) {
  const int64_t row = std::max<int64_t>(0, wave.begin - call.shifts[s]);
  return {row, std::min(call.rows(), wave.end - call.shifts[s]) - row, row + call.shifts[s] - wave.begin};
}

// The logits of a wave, keys by queries: a strip [M][width] a sample.
class Strips {
 public:
  explicit Strips(const Attend& call) : call_(call) {}

  // Takes a wave's queries.
  void load(const Wave& wave) {
    wave_ = wave;
    const int64_t width = wave.width(), size = width * call_.channels;
    held_.resize(checked_product({wave.samples(), call_.keys, width}));
    queries_.resize(wave.samples() * size);
    hashes_.resize(call_.threshold ? wave.samples() * width : 0);
    for_each(wave.samples(), [&](int64_t i) {
      transpose(query(wave.first + i), width, call_.channels, width, queries_.data() + i * size);
      if (!call_.threshold) return;
      const uint32_t row = static_cast<uint32_t>((wave.first + i) * call_.queries + wave.begin);
      for (int64_t n = 0; n < width; ++n)
        hashes_[i * width + n] = finalise(row + static_cast<uint32_t>(n) + finalise(call_.seed));
    });
  }

  // Writes the logits of keys m .. m + count - 1 and returns them.
  float* compute(int64_t b, int64_t m, int64_t count) {
    const int64_t width = wave_.width(), i = b - wave_.first;
    float* tile = at(b, m);
    multiply(count, width, call_.channels, call_.key + (b * call_.keys + m) * call_.channels, call_.channels,
             queries_.data() + i * width * call_.channels, width, tile, width, false);
    finish_logits(tile, count, width, call_.scale + b * call_.keys + m, call_.sharpness);
    if (call_.threshold)
      drop_logits(tile, count, width, {hashes_.data() + i * width, static_cast<uint32_t>(m), call_.threshold});
    return tile;
  }

  // The strip of a sample from key m on.
  float* at(int64_t b, int64_t m) { return held_.data() + ((b - wave_.first) * call_.keys + m) * wave_.width(); }

  const float* query(int64_t b) const { return call_.query + (b * call_.queries + wave_.begin) * call_.channels; }

 private:
  const Attend& call_;
  Wave wave_{};
  std::vector<float> held_, queries_;  // queries [D][width] of each sample
  std::vector<uint32_t> hashes_;
};

// What exp takes from a query's logits: its lse, and of one without an edge more than any logit.
inline float softmax_shift(float lse) {
  return lse == -std::numeric_limits<float>::infinity() ? std::numeric_limits<float>::infinity() : lse;
}

}  // namespace timecycle
