// An exponential that the compiler can vectorize, unlike std::exp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "simd/variants.h"

namespace timecycle {

// exp(x) for x <= 0, relative error below 2e-7: 2^n * 2^f with |f| <= 1/2 and a polynomial for 2^f. Results below
// 2^-126 become 2^-126.
TIMECYCLE_INLINE float exp_of_negative(float x) {
  const float scaled = std::max(x * 1.44269504f, -126.0f);
  // Adding 1.5 * 2^23 rounds to an integer, which is in the low bits then.
  const float shifted = scaled + 12582912.0f;
  const float fraction = scaled - (shifted - 12582912.0f);
  uint32_t exponent;  // unsigned: the sum is defined also for NaN and for x > 0
  std::memcpy(&exponent, &shifted, sizeof(exponent));
  float power = 1.5403530e-4f;
  power = power * fraction + 1.3333558e-3f;
  power = power * fraction + 9.6181291e-3f;
  power = power * fraction + 5.5504109e-2f;
  power = power * fraction + 2.4022651e-1f;
  power = power * fraction + 6.9314718e-1f;
  power = power * fraction + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &power, sizeof(bits));
  bits += exponent << 23;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

// The same, but 0 below 2^-126.
TIMECYCLE_INLINE float exp_or_zero(float x) {
  return x < -87.3f ? 0.0f : exp_of_negative(x);  // NaN stays NaN
}

}  // namespace timecycle
