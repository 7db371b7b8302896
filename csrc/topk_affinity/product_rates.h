// Which tile product is fastest on this chip, measured once: bfloat16 is twice as fast as float on one and half as fast
// on another, and bytes anything up to sixteen times.
#pragma once

#include <cstdint>

namespace timecycle {

// Multiply-adds per nanosecond and thread; 0 for what the chip or this PyTorch cannot multiply.
struct ProductRates {
  double floats, pairs, bytes;
};

// Measured at the first call, in some milliseconds, on the calling thread.
const ProductRates& product_rates();

// Whether bfloat16 features of this many channels should be multiplied in pairs; as floats otherwise.
bool pairs_win(int64_t channels);

// Whether products of bytes, and what it costs to decide between the candidates they leave, beat the direct products,
// in pairs or as floats.
bool bytes_win(int64_t channels, bool pairs);

}  // namespace timecycle
