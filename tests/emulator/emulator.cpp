#include <setjmp.h>
#include <ucontext.h>

#include <deque>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "chip.h"

namespace timecycle::chip {
namespace {

constexpr size_t kStack = 128 << 10;
constexpr unsigned char kPoison = 0xff;  // bytes of a NaN in every floating-point type

// A matrix product that a thread has started.
struct Product {
  Widen widen;
  float* sums;
  const char *a, *b;
  bool add;
};
// An asynchronous copy of 16 bytes.
struct Copy {
  char* to;
  const char* from;
  bool present;
};
// Accumulators of asynchronous products; `sums` are NaN until the products are waited for.
struct Shadow {
  float* sums;
  float value[64];
};

struct Thread {
  int block, index;  // index: within the block
  Thread(int block, int index) : block(block), index(index) {}

  ucontext_t context;
  jmp_buf at;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool started = false, done = false;
  std::function<bool()> condition;
  std::vector<std::vector<Product>> products;  // groups; the last one is not committed yet
  std::vector<std::vector<Copy>> copies;
  std::deque<Shadow> shadows;
};

// A barrier for the threads of a warp, a block or the grid.
struct Meeting {
  int expected = 0, arrived = 0;
  uint64_t turn = 0;
  uint64_t value[2][32];  // of a warp's lanes

  void meet() {
    const uint64_t now = turn;
    if (++arrived == expected) {
      arrived = 0;
      ++turn;
    } else {
      wait_until([this, now] { return turn != now; });
    }
  }
};

struct Block {
  std::vector<Meeting> warps;
  std::vector<int> asleep;  // rounds for which each warp is not run, so that some fall far behind the others
  Meeting all;
  std::vector<char> memory;
};

struct Grid {
  std::deque<Block> blocks;
  std::deque<Thread> threads;
  std::vector<std::function<void()>> arrivals;  // rows of boxes that are still to be copied
  Meeting all;
  int64_t count;  // of blocks
  const std::function<void()>& kernel;
};

Grid* grid = nullptr;
Thread* now = nullptr;
int64_t first_block = 0;
jmp_buf scheduler;
ucontext_t scheduler_context;
std::string failure;
std::mt19937 random_numbers(0);

Block& block_of(const Thread& thread) { return grid->blocks[thread.block - first_block]; }

void trampoline() {
  try {
    grid->kernel();
  } catch (const std::exception& error) {
    failure = error.what();
  }
  now->done = true;
  _longjmp(scheduler, 1);
}

// Runs a thread until it waits or ends.
void resume(Thread& thread) {
  if (_setjmp(scheduler) != 0) return;
  if (thread.started) _longjmp(thread.at, 1);
  thread.started = true;
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = thread.stack.get();
  thread.context.uc_stack.ss_size = kStack;
  thread.context.uc_link = nullptr;
  makecontext(&thread.context, trampoline, 0);
  swapcontext(&scheduler_context, &thread.context);
}

// The address of a byte in shared memory with the 128-byte swizzle of copy_box and the tensor cores.
const char* swizzled(const char* address) {
  const auto bits = reinterpret_cast<uintptr_t>(address);
  return reinterpret_cast<const char*>(bits ^ (bits >> 7 & 7) << 4);
}

uint16_t sixteen_bits(const char* address) {
  uint16_t bits;
  std::memcpy(&bits, address, 2);
  return bits;
}

void take(Thread& thread, const Product& product) {
  Shadow* shadow = nullptr;
  for (Shadow& known : thread.shadows) shadow = known.sums == product.sums ? &known : shadow;
  const int warp = thread.index / 32 % 4, lane = thread.index % 32;
  for (int s = 0; s < 64; ++s) {
    const int row = 16 * warp + lane / 4 + s % 4 / 2 * 8, column = s / 4 * 8 + 2 * (lane % 4) + s % 2;
    float sum = product.add ? shadow->value[s] : 0;
    for (int k = 0; k < 16; ++k) {
      // 1024 bytes from one group of eight rows to the next
      const char* const a = swizzled(product.a + row / 8 * 1024 + row % 8 * 128 + 2 * k);
      const char* const b = swizzled(product.b + column / 8 * 1024 + column % 8 * 128 + 2 * k);
      sum += product.widen(sixteen_bits(a)) * product.widen(sixteen_bits(b));
    }
    shadow->value[s] = sum;
  }
}

void take_all_but(Thread& thread, size_t left) {
  while (thread.products.size() > left) {
    for (const Product& product : thread.products.front()) take(thread, product);
    thread.products.erase(thread.products.begin());
  }
}

void carry_out(const Copy& copy) {
  std::memset(copy.to, 0, 16);
  if (copy.present) std::memcpy(copy.to, copy.from, 16);
}

void finish_copies(Thread& thread, size_t left) {
  while (thread.copies.size() > left) {
    for (const Copy& copy : thread.copies.front()) carry_out(copy);
    thread.copies.erase(thread.copies.begin());
  }
}

void settle(Barrier& barrier) {
  if (barrier.missing < 0) throw std::logic_error("more arrivals at a barrier than it expects");
  if (barrier.missing > 0 || barrier.bytes != 0) return;
  barrier.missing = barrier.expected;
  barrier.phase ^= 1;
}

// Runs all threads to their ends.
void run_all() {
  std::vector<Thread*> order;
  for (Thread& thread : grid->threads) order.push_back(&thread);
  for (bool idle = false;;) {
    bool happened = false, live = false;
    std::shuffle(order.begin(), order.end(), random_numbers);
    for (Block& block : grid->blocks) {
      for (int& asleep : block.asleep)
        asleep = asleep > 0 ? asleep - 1 : random_numbers() % 64 ? 0 : random_numbers() % 256;
    }
    for (Thread* const thread : order) {
      if (thread->done) continue;
      live = true;
      if (block_of(*thread).asleep[thread->index / 32]) {
        happened = true;
        continue;
      }
      if (thread->condition && !thread->condition()) continue;
      thread->condition = nullptr;
      now = thread;
      resume(*thread);
      happened = true;
      if (!failure.empty()) throw std::runtime_error(failure);
    }
    // Copies complete in random order, at random times.
    for (size_t i = grid->arrivals.size(); i-- > 0;) {
      if (coin() || coin()) continue;
      grid->arrivals[i]();
      std::swap(grid->arrivals[i], grid->arrivals.back());
      grid->arrivals.pop_back();
      happened = true;
    }
    if (!live) break;
    if (idle && !happened && grid->arrivals.empty()) throw std::runtime_error("deadlock: every thread waits");
    idle = !happened;
  }
  if (!grid->arrivals.empty()) throw std::runtime_error("a block ended before its copies had arrived");
}

}  // namespace

bool coin() { return random_numbers() & 1; }
int thread() { return now->index; }
int block() { return now->block; }
int64_t blocks() { return grid->count; }
int lane() { return now->index % 32; }

char* shared_memory() {  // aligned to 1024 bytes, as on a GPU
  const auto at = reinterpret_cast<uintptr_t>(block_of(*now).memory.data());
  return reinterpret_cast<char*>((at + 1023) / 1024 * 1024);
}

void wait_until(const std::function<bool()>& condition) {
  now->condition = condition;
  if (_setjmp(now->at) == 0) _longjmp(scheduler, 1);
}

void exchange(uint64_t value, uint64_t (&all)[32]) {
  Meeting& warp = block_of(*now).warps[now->index / 32];
  uint64_t (&values)[32] = warp.value[warp.turn % 2];
  values[lane()] = value;
  warp.meet();
  std::copy_n(values, 32, all);
}

void sync_block() { block_of(*now).all.meet(); }
void sync_grid() { grid->all.meet(); }

void init(Barrier& barrier, int arrivals) { barrier = {arrivals, arrivals, 0, 0}; }

void arrive(Barrier& barrier) {
  --barrier.missing;
  settle(barrier);
}

void arrive_and_expect(Barrier& barrier, int bytes) {
  barrier.bytes += bytes;
  arrive(barrier);
}

void wait(Barrier& barrier, uint32_t parity) {
  // A new barrier is in phase 0: waiting for parity 1 returns at once.
  wait_until([&barrier, parity] { return (barrier.phase & 1) != parity; });
}

cudaError_t make_boxes(Boxes& boxes, const void* base, bool, const int64_t (&size)[4], const int64_t (&stride)[3],
                       int wide, int tall) {
  boxes = {static_cast<const char*>(base), {}, {}, wide, tall};
  std::copy_n(size, 4, boxes.size);
  bool fits = reinterpret_cast<uintptr_t>(base) % 16 == 0;
  for (int i = 0; i < 3; ++i) {
    boxes.stride[i] = 2 * stride[i];
    fits = fits && boxes.stride[i] % 16 == 0;
  }
  return fits ? cudaSuccess : cudaErrorInvalidValue;  // as the driver: for unaligned addresses
}

void copy_box(void* to, const Boxes& from, int channel, int column, int row, int frame, Barrier& barrier) {
  // Position by position, each copied at a random time.
  for (int position = 0; position < from.wide * from.tall; ++position) {
    const int64_t x = column + position % from.wide, y = row + position / from.wide;
    char* const target = static_cast<char*>(to) + 128 * position;
    const auto happen = [=, &from, &barrier] {
      for (int c = 0; c < 64; ++c) {
        const bool inside = channel + c < from.size[0] && x < from.size[1] && y < from.size[2] && frame < from.size[3];
        uint16_t value = 0;
        if (inside) {
          const int64_t at = x * from.stride[0] + y * from.stride[1] + frame * from.stride[2] + 2 * (channel + c);
          value = sixteen_bits(from.base + at);
        }
        std::memcpy(const_cast<char*>(swizzled(target + 2 * c)), &value, 2);
      }
      barrier.bytes -= 128;
      settle(barrier);
    };
    grid->arrivals.push_back(happen);
  }
}

void products_begin() { sync_warp(); }

void multiply(Widen widen, float* sums, Operand a, Operand b, bool add) {
  Thread& thread = *now;
  bool known = false;
  for (const Shadow& shadow : thread.shadows) known = known || shadow.sums == sums;
  if (!known) {
    Shadow shadow{sums, {}};
    std::copy_n(sums, 64, shadow.value);
    thread.shadows.push_back(shadow);
    std::memset(sums, kPoison, 64 * sizeof(float));
  }
  if (thread.products.empty()) thread.products.emplace_back();
  thread.products.back().push_back({widen, sums, a.rows, b.rows, add});
  if (!coin()) return;  // then the operands are read when the product is waited for
  for (auto& group : thread.products) {
    for (const Product& product : group) take(thread, product);
    group.clear();
  }
}

void products_commit() { now->products.emplace_back(); }

void wait_for_products(int left) {
  Thread& thread = *now;
  take_all_but(thread, left + 1);  // the last group is not committed
  if (left == 0) {
    for (const Shadow& shadow : thread.shadows) std::copy_n(shadow.value, 64, shadow.sums);
    thread.shadows.clear();
  }
  sync_warp();
}

void copy_16(void* to, const void* from, bool present) {
  Thread& thread = *now;
  if (thread.copies.empty()) thread.copies.emplace_back();
  const Copy copy{static_cast<char*>(to), static_cast<const char*>(from), present};
  if (coin()) {
    carry_out(copy);  // it may complete at once
  } else {
    thread.copies.back().push_back(copy);
  }
}

void copies_commit() { now->copies.emplace_back(); }

void wait_for_copies(int left) { finish_copies(*now, left + 1); }

void load_matrices(uint32_t (&to)[4], const void* row) {
  uint64_t rows[32];
  exchange(reinterpret_cast<uint64_t>(row), rows);
  for (int i = 0; i < 4; ++i) {
    std::memcpy(&to[i], reinterpret_cast<const char*>(rows[8 * i + lane() / 4]) + 4 * (lane() % 4), 4);
  }
  sync_warp();
}

void multiply(Widen widen, float* sums, const uint32_t* a, const uint32_t* b) {
  uint64_t low[32], high[32], keys[32];
  exchange(a[0] | uint64_t{a[1]} << 32, low);  // channels 0 to 7 of rows 0 to 7 and of rows 8 to 15
  exchange(a[2] | uint64_t{a[3]} << 32, high);
  exchange(b[0] | uint64_t{b[1]} << 32, keys);
  const int row = lane() / 4, column = 2 * (lane() % 4);
  for (int s = 0; s < 4; ++s) {
    for (int k = 0; k < 16; ++k) {
      const int holder = k % 8 / 2, shift = k % 2 * 16;
      const uint64_t query = (k < 8 ? low : high)[4 * row + holder] >> (s / 2 * 32 + shift);
      const uint64_t key = keys[4 * (column + s % 2) + holder] >> (k / 8 * 32 + shift);
      sums[s] += widen(uint16_t(query)) * widen(uint16_t(key));
    }
  }
}

float bfloat16::widen(uint16_t bits) { return number_of(int32_t(uint32_t{bits} << 16)); }

float float16::widen(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float magnitude = exponent == 31  ? (fraction ? NAN : INFINITY)
                          : exponent == 0 ? std::ldexp(float(fraction), -24)
                                          : std::ldexp(float(1024 + fraction), exponent - 25);
  return bits >> 15 ? -magnitude : magnitude;
}

void run(int64_t blocks, int threads, int shared, bool together, const std::function<void()>& kernel) {
  failure.clear();
  const int64_t step = together ? blocks : 1;
  for (first_block = 0; first_block < blocks; first_block += step) {
    Grid mine{{}, {}, {}, {}, blocks, kernel};
    grid = &mine;
    grid->all.expected = int(step) * threads;
    for (int64_t b = first_block; b < first_block + step; ++b) {
      Block& block = grid->blocks.emplace_back();
      block.memory.assign(shared + 1024, char(kPoison));
      block.all.expected = threads;
      block.warps.resize(threads / 32);
      block.asleep.resize(threads / 32);
      for (Meeting& warp : block.warps) warp.expected = 32;
      for (int i = 0; i < threads; ++i) grid->threads.emplace_back(int(b), i);
    }
    run_all();
  }
}

}  // namespace timecycle::chip

// Counts of the events that were passed to chip::note() since the last call, in the order of chip::Event.
extern "C" __attribute__((visibility("default"))) void count_events(int64_t* counts) {
  for (int64_t& count : timecycle::chip::events) *counts++ = count, count = 0;
}
