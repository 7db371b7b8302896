// The functions of csrc/cuda/instructions.cuh for a CPU, so that the kernels' own code runs without a GPU.
//
// The threads of a block are coroutines that run in random order, with a fixed seed. Asynchronous operations complete
// at random times until something waits for them: copies arrive late, matrix products read their operands early or
// late, accumulators and shared memory are NaN until they are written. So a missing wait gives wrong numbers, and a
// missing arrival at a barrier is an error. Not emulated: speed, alignment rules of the hardware beyond those of
// make_boxes, and memory order without a barrier.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <type_traits>
#include <utility>

#define ON_DEVICE inline
#define KERNEL(threads, blocks) void
#define KERNEL_PARAMETER const
#define DYNAMIC_SHARED(name) char* const name = ::timecycle::chip::shared_memory()
#define FOR_SM90 1
#define FOR_SM80 1

namespace timecycle {
using std::abs;
using std::max;
using std::min;
}  // namespace timecycle

namespace timecycle::chip {

constexpr int kLargestShared = 1 << 20;
// Conversions from 16 bits to float.
struct bfloat16 {
  static float widen(uint16_t bits);
};
struct float16 {
  static float widen(uint16_t bits);
};

int thread();
int block();
int64_t blocks();
int lane();
char* shared_memory();
void wait_until(const std::function<bool()>& condition);
bool coin();  // true or false at random

// Gives every lane the values of all lanes of its warp: all other exchanges are made of this.
void exchange(uint64_t value, uint64_t (&all)[32]);

inline int64_t events[int(Event::count)] = {};  // counted over all warps
inline void note(Event event) { events[int(event)] += lane() == 0; }
void sync_block();
inline void sync_warp() {
  uint64_t all[32];
  exchange(0, all);
}
inline bool any(bool value) {
  uint64_t all[32];
  exchange(value, all);
  return std::any_of(all, all + 32, [](uint64_t x) { return x != 0; });
}
template <class T>
T from_lane(T value, int source) {
  uint64_t bits = 0, all[32];
  std::memcpy(&bits, &value, sizeof(T));
  exchange(bits, all);
  std::memcpy(&value, &all[source], sizeof(T));
  return value;
}
template <class T>
T from_lane_xor(T value, int mask) {
  return from_lane(value, lane() ^ mask);
}

inline int32_t bits_of(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float number_of(int32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline int count(uint32_t bits) { return __builtin_popcount(bits); }
inline int lowest(uint32_t bits) { return bits == 0 ? -1 : __builtin_ctz(bits); }
inline void put_in_order(int64_t& larger, int64_t& smaller) {
  if (smaller > larger) std::swap(larger, smaller);
}
inline uint32_t with_sign(uint32_t bits, float x) { return bits << 1 | uint32_t(bits_of(x)) >> 31; }
struct Cursor {
  char* address = nullptr;

  Cursor() = default;
  explicit Cursor(void* place) : address(static_cast<char*>(place)) {}
};
template <int STEP>
void append_if(uint32_t wanted, Cursor& to, float first, float second) {
  if (!wanted) return;
  std::memcpy(to.address, &first, 4);
  std::memcpy(to.address + 4, &second, 4);
  to.address += STEP;
}
inline float power_of_two(float x) { return std::exp2(x); }

struct Barrier {
  int expected, missing, bytes;
  uint32_t phase;
};
void init(Barrier& barrier, int arrivals);
inline void publish_barriers() {}
void arrive(Barrier& barrier);
void arrive_and_expect(Barrier& barrier, int bytes);
void wait(Barrier& barrier, uint32_t parity);

struct Boxes {
  const char* base;
  int64_t size[4], stride[3];  // bytes
  int wide, tall;
};
cudaError_t make_boxes(Boxes& boxes, const void* base, bool is_bfloat16, const int64_t (&size)[4],
                       const int64_t (&stride)[3], int wide, int tall);
void copy_box(void* to, const Boxes& from, int channel, int column, int row, int frame, Barrier& barrier);

template <int REGISTERS>
void take_registers() {}
template <int REGISTERS>
void leave_registers() {}

struct Operand {
  const char* rows;

  explicit Operand(const void* rows) : rows(static_cast<const char*>(rows)) {}
  Operand after(int bytes) const { return Operand(rows + bytes); }
};
void products_begin();
void products_commit();
void wait_for_products(int left);
template <int LEFT>
void products_wait() {
  wait_for_products(LEFT);
}
inline void sums_are_known(float (&)[64]) {}
using Widen = float (*)(uint16_t);
void multiply(Widen widen, float* sums, Operand a, Operand b, bool add);
template <class T>
void multiply(float (&sums)[64], Operand a, Operand b, bool add) {
  multiply(T::widen, sums, a, b, add);
}

void copy_16(void* to, const void* from, bool present);
void copies_commit();
void wait_for_copies(int left);
template <int LEFT>
void copies_wait() {
  wait_for_copies(LEFT);
}
void load_matrices(uint32_t (&to)[4], const void* row);
void multiply(Widen widen, float* sums, const uint32_t* a, const uint32_t* b);
template <class T>
void multiply(float* sums, const uint32_t* a, const uint32_t* b) {
  multiply(T::widen, sums, a, b);
}

// Waits for all threads of all blocks; only in kernels started by launch_together.
void sync_grid();
inline uint32_t least(uint32_t value) {
  uint64_t all[32];
  exchange(value, all);
  return uint32_t(*std::min_element(all, all + 32));
}
inline uint32_t most(uint32_t value) {
  uint64_t all[32];
  exchange(value, all);
  return uint32_t(*std::max_element(all, all + 32));
}
inline void lower(uint32_t* number, uint32_t value) { *number = std::min(*number, value); }
inline void raise(uint32_t* number, uint32_t value) { *number = std::max(*number, value); }

void run(int64_t blocks, int threads, int shared, bool together, const std::function<void()>& kernel);
template <class... P>
bool is_for_hopper(void (*)(P...)) {
  return false;
}
template <class... P>
cudaError_t launch(void (*kernel)(P...), int64_t blocks, int threads, int shared, cudaStream_t, P... parameters) {
  run(blocks, threads, shared, false, [&] { kernel(parameters...); });
  return cudaSuccess;
}
template <class P>
cudaError_t launch_together(void (*kernel)(P), int64_t wanted, int threads, cudaStream_t, P parameter) {
  run(min(wanted, int64_t{3}), threads, 0, true, [&] { kernel(parameter); });
  return cudaSuccess;
}

}  // namespace timecycle::chip
