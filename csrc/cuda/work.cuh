// The work of each block: all blocks get the same number of patches of keys.
//
// Targets are taken in rounds, each of as many targets as have their keys in the cache together. The patches of a round
// are in one order, by target, patch of queries, slot and patch of keys, and every block takes a contiguous stretch.
// The stretches of all rounds together differ by at most one patch from block to block. A stretch that begins or ends
// inside a list's keys makes one more list of the same queries: the list's parts are numbered by the blocks that have
// some of it.
#pragma once

#include "patches.cuh"

namespace timecycle {

// The work items of one block, in order. In shared memory, advanced by one thread.
template <bool NEIGHBORHOOD>
struct BlockWork {
  WorkItem item;
  SlotPatches<NEIGHBORHOOD> slot;  // the item's

  ON_DEVICE Patch<NEIGHBORHOOD> queries() const { return {item.y, item.x}; }

  // Iterates over the item's patches of keys.
  struct Keys {
    Patch<NEIGHBORHOOD> patch;
    int number;  // among the slot's wanted patches

    ON_DEVICE explicit Keys(const BlockWork& work)
        : number(NEIGHBORHOOD ? -1 : work.item.first - 1), last(work.item.last) {}

    // Advances to the next; whether there is one.
    ON_DEVICE bool next(const Problem& p, const BlockWork& work) {
      const SlotPatches<NEIGHBORHOOD>& slot = work.slot;
      if constexpr (!NEIGHBORHOOD) {  // all are wanted
        patch = slot.patch(++number);
        return number < last;
      }
      while (number + 1 < last && ++at < slot.count) {
        patch = slot.patch(at);
        if (slot.wanted(p, work.queries(), patch) && ++number >= work.item.first) return true;
      }
      return false;
    }

   private:
    int at = -1;  // among all of the slot
    const int last;
  };

  ON_DEVICE void start(int own, int all) {
    block = int16_t(own);
    blocks = int16_t(all);
    round = -1;
    end = 0;
    size = 0;
    rest = 0;
    left = 0;
  }

  // Advances to the next item; whether there is one.
  ON_DEVICE bool next(const Problem& p) {
    const bool stretch = left == 0;
    if (stretch && !next_round(p)) return false;
    const bool same = !stretch && !step(p);
    item.begins = !same;
    const int units = units_of(p, item.target, item.queries, item.slot);
    item.last = item.first + (left < units - item.first ? left : units - item.first);
    left = left - (item.last - item.first);
    item.list = p.lists * ((p.joint ? 0 : item.slot * p.parts) + item.part);
    const Patch<NEIGHBORHOOD> ours = patch_of<NEIGHBORHOOD>(p.queries, item.queries);
    item.y = ours.y;
    item.x = ours.x;
    slot.set(p, item.target, item.slot, ours);
    item.ends = left == 0 || !p.joint || !more_slots(p);
    return true;
  }

 private:
  volatile int16_t block, blocks;
  volatile int round, end;  // of targets, and the first target after it
  volatile int size, rest;  // patches of the round, and those of all rounds before, modulo blocks
  volatile int sharing;     // blocks that share the round
  volatile int left;        // patches of the stretch after the item

  // Numbers of a target's slots of which queries see the neighborhood (without one: all keys), and of those of which
  // they see all keys nevertheless.
  struct SlotCounts {
    int restricted, everywhere;
  };

  ON_DEVICE static int all_keys(const Problem& p) { return patches_of<NEIGHBORHOOD>(p.positions); }

  ON_DEVICE static SlotCounts count_slots(const Problem& p, int target) {
    SlotCounts found = {0, 0};
#pragma unroll 1
    for (int t = 0; t < p.slots; ++t) {
      const int64_t at = int64_t{target} * p.slots + t;
      if (p.frames[at] < 0 || p.frames[at] >= p.bank_frames) continue;
      const bool everywhere = NEIGHBORHOOD && p.multiplicity[2 * at + 1] > 0;
      found.everywhere += everywhere;
      found.restricted += !everywhere && p.multiplicity[2 * at] > 0;
    }
    return found;
  }

  // Patches of keys of one slot.
  ON_DEVICE static int units_of(const Problem& p, int target, int queries, int slot) {
    const int64_t at = int64_t{target} * p.slots + slot;
    if (p.frames[at] < 0 || p.frames[at] >= p.bank_frames) return 0;
    if (NEIGHBORHOOD && p.multiplicity[2 * at + 1] > 0) return all_keys(p);
    return p.multiplicity[2 * at] > 0 ? p.before[queries + 1] - p.before[queries] : 0;
  }

  // Patches of keys of a target before a patch of queries.
  ON_DEVICE static int units_before(const Problem& p, SlotCounts slots, int queries) {
    return slots.restricted * p.before[queries] + slots.everywhere * all_keys(p) * queries;
  }

  // Where in the round the stretch of block number i begins.
  ON_DEVICE int cut(int i) const {
    // In rounds that all blocks share, the remainder goes to other blocks each time.
    const int before = sharing == blocks && size >= blocks ? rest : 0;
    return share(before + size, i) - share(before, i);
  }

  // patches * i / sharing, without 64-bit arithmetic.
  ON_DEVICE int share(int patches, int i) const { return patches / sharing * i + patches % sharing * i / sharing; }

  ON_DEVICE bool next_round(const Problem& p) {
    const int all = patches_of<NEIGHBORHOOD>(p.queries);
#pragma unroll 1
    while (round + 1 < p.rounds) {
      round = round + 1;
      const int first = end;
      end = end + int(p.targets) / p.rounds + (round < int(p.targets) % p.rounds);
      rest = (rest + size) % blocks;
      size = 0;
      int filled = 0;
#pragma unroll 1
      for (int b = first; b < end; ++b) {
        const SlotCounts slots = count_slots(p, b);
        size = size + units_before(p, slots, all);
        filled += slots.restricted + slots.everywhere;
      }
      // Fewer blocks where slots are empty: a list has no more parts than with all of them.
      sharing = max(1, blocks * filled / (p.slots * max(1, end - first)));
      if (block >= sharing) continue;
      left = cut(block + 1) - cut(block);
      if (left == 0) continue;
      find(p, first, all);
      return true;
    }
    return false;
  }

  // Sets the item to the beginning of the stretch, and its part of the list.
  ON_DEVICE void find(const Problem& p, int first, int all) {
    int at = cut(block), start = 0;  // of what has not been searched yet
#pragma unroll 1
    for (int target = first;; ++target) {
      item.target = target;
      const int units = units_before(p, count_slots(p, target), all);
      if (at - start < units) break;
      start += units;
    }
    const SlotCounts slots = count_slots(p, item.target);
    int low = 0, high = all - 1;
#pragma unroll 1
    while (low < high) {  // the last patch of queries that begins no later
      const int middle = (low + high + 1) / 2;
      if (units_before(p, slots, middle) <= at - start) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    item.queries = low;
    start += units_before(p, slots, low);
    int list = start;  // where it begins
#pragma unroll 1
    for (int t = 0;; ++t) {
      item.slot = t;
      const int units = units_of(p, item.target, item.queries, t);
      if (at - start < units) break;
      start += units;
      if (!p.joint) list = start;
    }
    item.first = at - start;
    item.part = 0;
#pragma unroll 1
    while (cut(block - item.part) > list) item.part = item.part + 1;
  }

  // Advances to the next slot that has keys; whether its queries are others.
  ON_DEVICE bool step(const Problem& p) {
    const int all = patches_of<NEIGHBORHOOD>(p.queries);
    bool other = false;
#pragma unroll 1
    do {
      item.slot = item.slot + 1;
      if (item.slot < p.slots) continue;
      item.slot = 0;
      other = true;
      item.queries = item.queries + 1;
      if (item.queries < all) continue;
      item.queries = 0;
      item.target = item.target + 1;
    } while (units_of(p, item.target, item.queries, item.slot) == 0);
    item.first = 0;
    if (other || !p.joint) item.part = 0;
    return other;
  }

  ON_DEVICE bool more_slots(const Problem& p) const {
#pragma unroll 1
    for (int t = item.slot + 1; t < p.slots; ++t) {
      if (units_of(p, item.target, item.queries, t) > 0) return true;
    }
    return false;
  }
};

}  // namespace timecycle
