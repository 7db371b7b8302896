// The loops of loops.h as templates over an instruction set `Isa`: loops_plain.cpp and loops_avx512.cpp define one each
// and include this file. Everything is internal to the including file, which compiles it for its own target.
#pragma once

#include "simd/loops.h"
#include "simd/variants.h"

#ifndef TIMECYCLE_LOOP  // attributes of every loop
#error "define TIMECYCLE_LOOP"
#endif

namespace timecycle {
namespace {

constexpr int64_t kBlock = 64;  // channels per step of `dot`

// The row of n channels from the sum of its bytes, the sum of its squared values, and that of its squared rounding
// errors.
TIMECYCLE_INLINE ByteRow make_byte_row(int64_t n, float scale, float low, int32_t sum, float squares,
                                       float lost_squares) {
  const float count = static_cast<float>(n), length = std::sqrt(squares), lost = std::sqrt(lost_squares);
  return {.scale = scale,
          .low = low,
          .sum = count * low + scale * static_cast<float>(sum),
          .norm = length,
          .residual = lost,
          .parts = length + lost + 2.0f * std::abs(low) * std::sqrt(count)};
}

// Appends the lanes of a row whose bit is set.
TIMECYCLE_INLINE int64_t append(uint64_t marked, const float* values, int64_t row, TileCandidate* out, int64_t count) {
  for (; marked != 0; marked &= marked - 1) {
    const int64_t q = __builtin_ctzll(marked);
    out[count++] = {values[q], static_cast<int16_t>(row), static_cast<int16_t>(q)};
  }
  return count;
}

template <class Isa>
TIMECYCLE_LOOP float dot(const float* a, const float* b, int64_t n) {
  typename Isa::Sums sums;
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) sums.add_products(a + i, b + i, kBlock);
  if (i < n) sums.add_products(a + i, b + i, n - i);
  return sums.total();
}

template <class Isa>
TIMECYCLE_LOOP void transpose_block(const float* tile, int64_t columns, int64_t stride, float* out) {
  Isa::transpose_block(tile, columns, stride, out);
}

template <class Isa>
TIMECYCLE_LOOP int64_t tile_candidates(const float* tile, int64_t rows, const float* threshold, TileCandidate* out) {
  int64_t count = 0;
  const typename Isa::Row least = Isa::load(threshold);
  for (int64_t row = 0; row < rows; ++row) {
    const float* values = tile + row * kLanes;
    count = append(Isa::at_least(Isa::load(values), least), values, row, out, count);
  }
  return count;
}

template <class Isa>
TIMECYCLE_LOOP void insert_tile(const float* tile, TileMultiplicity multiplicity, int64_t rows, int32_t first_index,
                                const SortedLists& lists) {
  typename Isa::Row kth = Isa::load(lists.kth);
  for (int64_t row = 0; row < rows; ++row) {
    const float* values = tile + row * kLanes;
    const uint64_t marked = Isa::above(Isa::load(values), kth);
    for (uint64_t left = marked; left != 0; left &= left - 1) {
      const int64_t q = __builtin_ctzll(left);
      int64_t times = multiplicity.of(row, q);
      for (; times > 0 && values[q] > lists.kth[q]; --times)
        Isa::insert(lists, q, values[q], first_index + static_cast<int32_t>(row));
    }
    // Insertions raise k-th values: reload them now and then, so that fewer entries are marked.
    if (marked != 0 && row % 8 == 7) kth = Isa::load(lists.kth);
  }
}

template <class Isa>
TIMECYCLE_LOOP ByteRow quantize(const float* values, int64_t n, uint8_t* bytes) {
  typename Isa::Range range(values[0]);
  int64_t i = 0;
  for (; i + Isa::kStep <= n; i += Isa::kStep) range.take(values + i, Isa::kStep);
  range.take(values + i, n - i);
  const float low = range.low(), high = range.high();
  // Values that hardly differ are all quantized to 0: the residual includes their differences.
  const bool flat = !(high - low > 1e-30f);
  const float scale = flat ? 1.0f : (high - low) / 255.0f, inverse = flat ? 0.0f : 255.0f / (high - low);
  typename Isa::Quantizer quantizer(low, scale, inverse);
  for (i = 0; i + Isa::kStep <= n; i += Isa::kStep) quantizer.take(values + i, Isa::kStep, bytes + i);
  quantizer.take(values + i, n - i, bytes + i);
  return make_byte_row(n, scale, low, quantizer.total(), range.squares(), quantizer.lost_squares());
}

template <class Isa>
TIMECYCLE_LOOP int64_t byte_candidates(const int32_t* tile, const float* multiplicity, const ByteRow* keys,
                                       int64_t rows, const ByteLanes& lanes, const float* threshold,
                                       TileCandidate* out) {
  int64_t count = 0;
  alignas(64) float buffer[kLanes];
  const typename Isa::Row least = Isa::load(threshold);
  const typename Isa::Row total = Isa::load(lanes.total), offset = Isa::load(lanes.offset);
  for (int64_t row = 0; row < rows; ++row) {
    const typename Isa::Row values = Isa::byte_products(tile + row * kLanes, keys[row], total, offset, buffer);
    uint64_t marked = Isa::at_least(values, least);
    if (marked == 0) continue;
    if (multiplicity) marked &= Isa::positive(multiplicity + row * kLanes);
    count = append(marked, Isa::store(values, buffer), row, out, count);
  }
  return count;
}

template <class Isa>
TIMECYCLE_LOOP int64_t keep_candidates(const TileCandidate* found, int64_t count, TileMultiplicity multiplicity,
                                       int64_t first_index, const float* error, const SortedLists& lower,
                                       Candidate* out) {
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t q = found[i].lane, row = found[i].row;
    const float most = found[i].value + error[q], least = found[i].value - error[q];
    if (!(most >= lower.kth[q])) continue;
    out[kept++] = {most, static_cast<uint32_t>((first_index + row) * kLanes + q)};
    int64_t times = multiplicity.of(row, q);
    for (; times > 0 && least > lower.kth[q]; --times) Isa::insert(lower, q, least, 0);
  }
  return kept;
}

template <class Isa>
constexpr Loops kLoops = {dot<Isa>,      transpose_block<Isa>, tile_candidates<Isa>, insert_tile<Isa>,
                          quantize<Isa>, byte_candidates<Isa>, keep_candidates<Isa>};

}  // namespace
}  // namespace timecycle
