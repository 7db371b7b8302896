// A wave's logits are computed chunk by chunk of keys, then reduced to lse, then exponentiated and multiplied with the
// values. Values for all samples are read once a wave: samples are the inner loop.
#include <cmath>
#include <limits>

#include "attention/attention_wave.h"
#include "sizes.h"

namespace timecycle {
namespace {

class Forward {
 public:
  Forward(const Attend& call, float* out, float* lse)
      : call_(call), out_(out), lse_(lse), strips_(call), chunks_((call.keys + kChunk - 1) / kChunk) {}

  void run(const Wave& wave) {
    wave_ = wave;
    if (wave.begin == 0) start_sums();
    strips_.load(wave);
    statistics_.resize(wave.samples() * chunks_ * 2 * wave.width());
    shifts_.resize(wave.samples() * wave.width());
    for_each(wave.samples() * chunks_, [&](int64_t i) { take_logits(wave.first + i / chunks_, i % chunks_); });
    for (int64_t b = wave.first; b < wave.last; ++b) combine(b);
    const int64_t problems = call_.shared ? 1 : wave.samples();
    for_each(problems * groups_, [&](int64_t i) {
      const int64_t first = call_.shared ? wave.first : wave.first + i / groups_;
      add_group(first, call_.shared ? wave.last : first + 1, i % groups_);
    });
    if (wave.end == call_.queries) finish_sums();
  }

 private:
  // Chunks are summed in groups, so that threads have sums of their own.
  void start_sums() {
    const int64_t size = std::max<int64_t>(1, wave_.samples() * call_.rows() * call_.columns);
    groups_ = std::clamp<int64_t>(kPartial / size, 1, std::min(kTasks, chunks_));
    sums_.assign(checked_product({groups_, size}), 0.0f);
  }

  float* sum(int64_t group, int64_t b) {
    return sums_.data() + (group * wave_.samples() + b - wave_.first) * call_.rows() * call_.columns;
  }

  // Of a sample and chunk: the largest logit of each query of the wave, then the sums of exponentials.
  float* statistics(int64_t b, int64_t chunk) {
    return statistics_.data() + ((b - wave_.first) * chunks_ + chunk) * 2 * wave_.width();
  }

  int64_t count(int64_t chunk) const { return std::min(kChunk, call_.keys - chunk * kChunk); }

  void take_logits(int64_t b, int64_t chunk) {
    const float* tile = strips_.compute(b, chunk * kChunk, count(chunk));
    float* found = statistics(b, chunk);
    column_softmax(tile, count(chunk), wave_.width(), found, found + wave_.width());
  }

  void combine(int64_t b) {
    const int64_t width = wave_.width();
    for (int64_t n = 0; n < width; ++n) {
      float largest = -std::numeric_limits<float>::infinity(), sum = 0.0f;
      for (int64_t chunk = 0; chunk < chunks_; ++chunk) largest = std::max(largest, statistics(b, chunk)[n]);
      const float shift = std::isfinite(largest) ? largest : 0.0f;
      for (int64_t chunk = 0; chunk < chunks_; ++chunk)
        sum += statistics(b, chunk)[width + n] * std::exp(statistics(b, chunk)[n] - shift);
      const float lse = shift + std::log(sum);
      lse_[b * call_.queries + wave_.begin + n] = lse;
      shifts_[(b - wave_.first) * width + n] = softmax_shift(lse);
    }
  }

  void add_group(int64_t first, int64_t last, int64_t group) {
    const int64_t width = wave_.width();
    std::vector<float> turned(width * kChunk);
    for (int64_t chunk = chunks_ * group / groups_; chunk < chunks_ * (group + 1) / groups_; ++chunk)
      for (int64_t b = first; b < last; ++b) {
        const int64_t keys = count(chunk), m = chunk * kChunk;
        float* tile = strips_.at(b, m);
        exponentiate(tile, keys, width, shifts_.data() + (b - wave_.first) * width);
        transpose(tile, keys, width, kChunk, turned.data());
        for (int64_t s = 0; s < call_.slices(); ++s) {
          const Overlap part = overlap(call_, wave_, s);
          multiply(part.count, call_.columns, keys, &turned[part.query * kChunk], kChunk,
                   call_.value + call_.value_row(b, s, m) * call_.columns, call_.columns,
                   sum(group, b) + part.row * call_.columns, call_.columns, true);
        }
      }
  }

  void finish_sums() {
    const int64_t size = call_.rows() * call_.columns;
    for_each(wave_.samples(), [&](int64_t i) {
      const int64_t b = wave_.first + i;
      for (int64_t group = 1; group < groups_; ++group) add_scaled(1.0f, sum(group, b), size, sum(0, b));
      std::copy_n(sum(0, b), size, out_ + b * size);
    });
  }

  const Attend& call_;
  float *out_, *lse_;
  Strips strips_;
  int64_t chunks_, groups_ = 1;
  Wave wave_{};
  std::vector<float> statistics_, shifts_, sums_;
};

}  // namespace

void attend_cpu(const Attend& call, float* out, float* lse) {
  Forward forward(call, out, lse);
  for (const Wave& wave : waves_of(call)) forward.run(wave);
}

}  // namespace timecycle
