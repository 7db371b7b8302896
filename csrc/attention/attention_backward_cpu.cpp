// A wave's affinities and their gradients are held, keys by queries: which is how four of the five products want them.
// Threads share the keys, and for the queries' gradient the queries, so that nothing is summed by several.
#include <cmath>
#include <limits>

#include "attention/attention_wave.h"
#include "simd/column_epilogue.h"
#include "sizes.h"

namespace timecycle {
namespace {

constexpr int64_t kQueries = 64;  // whose gradient a thread takes at once

class Backward {
 public:
  Backward(const Attend& call, const AttendGradient& gradient)
      : call_(call), in_(gradient), strips_(call), chunks_((call.keys + kChunk - 1) / kChunk) {}

  void run(const Wave& wave) {
    wave_ = wave;
    load();
    const int64_t problems = call_.shared ? 1 : wave.samples();
    const auto for_chunks = [&](const auto& function) {
      for_each(problems * chunks_, [&](int64_t i) {
        const int64_t first = call_.shared ? wave.first : wave.first + i / chunks_;
        for (int64_t b = first; b < (call_.shared ? wave.last : first + 1); ++b) function(b, i % chunks_);
      });
    };
    for_chunks([&](int64_t b, int64_t chunk) { take_affinities(b, chunk); });
    for (int64_t b = wave.first; b < wave.last; ++b) combine(b);
    for_chunks([&](int64_t b, int64_t chunk) { give_keys(b, chunk); });
    const int64_t blocks = (wave.width() + kQueries - 1) / kQueries;
    for_each(wave.samples() * blocks, [&](int64_t i) { give_queries(wave.first + i / blocks, i % blocks); });
  }

  // The gradients of keys and their factors, from that of their products with the factors.
  void finish() {
    for_each(call_.samples * call_.keys, [&](int64_t row) {
      float* d_key = in_.d_key + row * call_.channels;
      in_.d_scale[row] = dot(call_.key + row * call_.channels, d_key, call_.channels);
      scale_rows(d_key, 1, call_.channels, call_.scale + row);
    });
  }

 private:
  void load() {
    const int64_t width = wave_.width(), size = call_.rows() * call_.columns;
    strips_.load(wave_);
    gradients_.resize(checked_product({wave_.samples(), call_.keys, width}));
    means_.resize(wave_.samples() * chunks_ * width);
    shifts_.resize(wave_.samples() * width);
    add_.resize(wave_.samples() * width);
    turned_.resize(checked_product({wave_.samples(), size}));
    for_each(wave_.samples(), [&](int64_t i) {
      const int64_t b = wave_.first + i;
      transpose(in_.d_out + b * size, call_.rows(), call_.columns, call_.rows(), turned_.data() + i * size);
      for (int64_t n = 0; n < width; ++n)
        shifts_[i * width + n] = softmax_shift(in_.lse[b * call_.queries + wave_.begin + n]);
    });
  }

  float* gradient(int64_t b, int64_t m) {
    return gradients_.data() + ((b - wave_.first) * call_.keys + m) * wave_.width();
  }

  float* mean(int64_t b, int64_t chunk) {
    return means_.data() + ((b - wave_.first) * chunks_ + chunk) * wave_.width();
  }
  int64_t count(int64_t chunk) const { return std::min(kChunk, call_.keys - chunk * kChunk); }

  // The affinities of a chunk, their gradients, and the sums over its keys of the products of both.
  void take_affinities(int64_t b, int64_t chunk) {
    const int64_t width = wave_.width(), m = chunk * kChunk, keys = count(chunk);
    float *affinity = strips_.compute(b, m, keys), *d_affinity = gradient(b, m);
    exponentiate(affinity, keys, width, shifts_.data() + (b - wave_.first) * width);
    std::fill_n(d_affinity, keys * width, 0.0f);
    const float* d_out = turned_.data() + (b - wave_.first) * call_.rows() * call_.columns;
    for (int64_t s = 0; s < call_.slices(); ++s) {
      const Overlap part = overlap(call_, wave_, s);
      multiply(keys, part.count, call_.columns, call_.value + call_.value_row(b, s, m) * call_.columns, call_.columns,
               d_out + part.row, call_.rows(), d_affinity + part.query, width, true);
    }
    column_dots(affinity, d_affinity, keys, width, mean(b, chunk));
  }

  void combine(int64_t b) {
    const int64_t width = wave_.width();
    for (int64_t n = 0; n < width; ++n) {
      const float given = in_.d_lse[b * call_.queries + wave_.begin + n];
      float sum = 0.0f;
      for (int64_t chunk = 0; chunk < chunks_; ++chunk) sum += mean(b, chunk)[n];
      const int64_t i = (b - wave_.first) * width + n;
      // A query without an edge may have any gradient of its lse, -inf; it passes none on.
      add_[i] = std::isinf(shifts_[i]) ? 0.0f : given - sum;
    }
  }

  // Of a chunk the gradients of the values and of the keys (without their factors); leaves the logits' own, queries by
  // keys and with the factors, in the place of the affinities' gradients.
  void give_keys(int64_t b, int64_t chunk) {
    const int64_t width = wave_.width(), m = chunk * kChunk, keys = count(chunk), columns = call_.columns;
    const int64_t row = b * call_.keys + m, channels = call_.channels;
    float* tile = strips_.at(b, m);
    for (int64_t s = 0; s < call_.slices(); ++s) {
      const Overlap part = overlap(call_, wave_, s);
      float* d_value = in_.d_value + call_.value_row(b, s, m) * columns;
      const bool first = wave_.begin == 0 && (b == 0 || !call_.shared);
      if (first && part.count <= 0) std::fill_n(d_value, keys * columns, 0.0f);
      multiply(keys, columns, part.count, tile + part.query, width, in_.d_out + (b * call_.rows() + part.row) * columns,
               columns, d_value, columns, !first);
    }
    softmax_gradient(tile, gradient(b, m), keys, width, add_.data() + (b - wave_.first) * width, call_.sharpness);
    multiply(keys, channels, width, tile, width, strips_.query(b), channels, in_.d_key + row * channels, channels,
             wave_.begin > 0);
    scale_rows(tile, keys, width, call_.scale + row);
    transpose(tile, keys, width, keys, gradient(b, m));
  }

  void give_queries(int64_t b, int64_t block) {
    const int64_t first = block * kQueries, rows = std::min(kQueries, wave_.width() - first), channels = call_.channels;
    float* d_query = in_.d_query + (b * call_.queries + wave_.begin + first) * channels;
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      const int64_t m = chunk * kChunk, keys = count(chunk);
      multiply(rows, channels, keys, gradient(b, m) + first * keys, keys, call_.key + (b * call_.keys + m) * channels,
               channels, d_query, channels, chunk > 0);
    }
  }

  const Attend& call_;
  const AttendGradient& in_;
  Strips strips_;
  int64_t chunks_;
  Wave wave_{};
  // Of each sample: gradients of affinities, [M][width]; their means, [chunks][width]; what exponents and gradients of
  // logits are moved by, [width]; the gradient of the output, [C][R].
  std::vector<float> gradients_, means_, shifts_, add_, turned_;
};

}  // namespace

void attend_backward_cpu(const Attend& call, const AttendGradient& gradient) {
  Backward backward(call, gradient);
  for (const Wave& wave : waves_of(call)) backward.run(wave);
  backward.finish();
}

}  // namespace timecycle
