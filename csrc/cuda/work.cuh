// Who does what: patches of keys in equal numbers to all blocks.
//
// Targets are taken in rounds, as many at a time as have their keys in the cache together. The patches of a round are
// in one order, by target, patch of queries, slot and patch of keys, and every block takes a stretch of them. The
// stretches of all rounds together differ by at most one patch from block to block. A stretch that begins or ends
// inside a list's keys makes one more list of the same queries: the list's parts are numbered by the blocks that have
// some of it.
#pragma once

#include "patches.cuh"

namespace timecycle {

// The work of one block, piece by piece. In shared memory, advanced by one thread.
template <bool REGION>
struct Work {
  Piece piece;
  Slot<REGION> slot;  // the piece's

  ON_DEVICE Patch<REGION> queries() const { return {piece.y, piece.x}; }

  // The piece's patches of keys, one after the other.
  struct Keys {
    Patch<REGION> patch;
    int number;  // of those of the slot that are wanted

    ON_DEVICE explicit Keys(const Work& work) : number(REGION ? -1 : work.piece.first - 1), last(work.piece.last) {}

    // Goes to the next; whether there is one.
    ON_DEVICE bool next(const Scan& call, const Work& work) {
      const Slot<REGION>& slot = work.slot;
      if constexpr (!REGION) {  // all are wanted
        patch = slot.patch(++number);
        return number < last;
      }
      while (number + 1 < last && ++at < slot.count) {
        patch = slot.patch(at);
        if (slot.wanted(call, work.queries(), patch) && ++number >= work.piece.first) return true;
      }
      return false;
    }

   private:
    int at = -1;  // of all of the slot
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

  // Goes to the next piece; whether there is one.
  ON_DEVICE bool next(const Scan& call) {
    const bool stretch = left == 0;
    if (stretch && !next_round(call)) return false;
    const bool same = !stretch && !step(call);
    piece.begins = !same;
    const int units = units_of(call, piece.target, piece.queries, piece.slot);
    piece.last = piece.first + (left < units - piece.first ? left : units - piece.first);
    left = left - (piece.last - piece.first);
    piece.list = call.lists * ((call.joint ? 0 : piece.slot * call.parts) + piece.part);
    const Patch<REGION> ours = patch_of<REGION>(call.queries, piece.queries);
    piece.y = ours.y;
    piece.x = ours.x;
    slot.set(call, piece.target, piece.slot, ours);
    piece.ends = left == 0 || !call.joint || !more_slots(call);
    return true;
  }

 private:
  volatile int16_t block, blocks;
  volatile int round, end;  // of targets, and the first target after it
  volatile int size, rest;  // patches of the round, and of all rounds before modulo blocks
  volatile int sharing;     // blocks that share the round
  volatile int left;        // patches of the stretch after the piece

  // A target's slots that see all keys, and those that see the neighborhood, which is all without one.
  struct Slots {
    int near, everywhere;
  };

  ON_DEVICE static int all_keys(const Scan& call) { return patches_of<REGION>(call.positions); }

  ON_DEVICE static Slots slots_of(const Scan& call, int target) {
    Slots found = {0, 0};
#pragma unroll 1
    for (int t = 0; t < call.slots; ++t) {
      const int64_t at = int64_t{target} * call.slots + t;
      if (call.frames[at] < 0 || call.frames[at] >= call.bank_frames) continue;
      const bool everywhere = REGION && call.multiplicity[2 * at + 1] > 0;
      found.everywhere += everywhere;
      found.near += !everywhere && call.multiplicity[2 * at] > 0;
    }
    return found;
  }

  // Patches of keys of one slot.
  ON_DEVICE static int units_of(const Scan& call, int target, int queries, int slot) {
    const int64_t at = int64_t{target} * call.slots + slot;
    if (call.frames[at] < 0 || call.frames[at] >= call.bank_frames) return 0;
    if (REGION && call.multiplicity[2 * at + 1] > 0) return all_keys(call);
    return call.multiplicity[2 * at] > 0 ? call.before[queries + 1] - call.before[queries] : 0;
  }

  // Patches of keys of a target before a patch of queries.
  ON_DEVICE static int units_before(const Scan& call, Slots slots, int queries) {
    return slots.near * call.before[queries] + slots.everywhere * all_keys(call) * queries;
  }

  // Where the stretch of block number i begins, in the round.
  ON_DEVICE int cut(int i) const {
    // Of rounds that all blocks share, what is left over goes to other blocks each time.
    const int before = sharing == blocks && size >= blocks ? rest : 0;
    return share(before + size, i) - share(before, i);
  }

  // patches * i / sharing, without numbers of 64 bits.
  ON_DEVICE int share(int patches, int i) const { return patches / sharing * i + patches % sharing * i / sharing; }

  ON_DEVICE bool next_round(const Scan& call) {
    const int all = patches_of<REGION>(call.queries);
#pragma unroll 1
    while (round + 1 < call.rounds) {
      round = round + 1;
      const int first = end;
      end = end + int(call.targets) / call.rounds + (round < int(call.targets) % call.rounds);
      rest = (rest + size) % blocks;
      size = 0;
      int filled = 0;
#pragma unroll 1
      for (int b = first; b < end; ++b) {
        const Slots slots = slots_of(call, b);
        size = size + units_before(call, slots, all);
        filled += slots.near + slots.everywhere;
      }
      // Fewer blocks where slots are empty: a list has no more parts than with all of them.
      sharing = max(1, blocks * filled / (call.slots * max(1, end - first)));
      if (block >= sharing) continue;
      left = cut(block + 1) - cut(block);
      if (left == 0) continue;
      find(call, first, all);
      return true;
    }
    return false;
  }

  // Makes the beginning of the stretch the piece's, and tells the part of its list.
  ON_DEVICE void find(const Scan& call, int first, int all) {
    int at = cut(block), start = 0;  // of what is not looked through yet
#pragma unroll 1
    for (int target = first;; ++target) {
      piece.target = target;
      const int units = units_before(call, slots_of(call, target), all);
      if (at - start < units) break;
      start += units;
    }
    const Slots slots = slots_of(call, piece.target);
    int low = 0, high = all - 1;
#pragma unroll 1
    while (low < high) {  // the last patch of queries that begins no later
      const int middle = (low + high + 1) / 2;
      if (units_before(call, slots, middle) <= at - start) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    piece.queries = low;
    start += units_before(call, slots, low);
    int list = start;  // where it begins
#pragma unroll 1
    for (int t = 0;; ++t) {
      piece.slot = t;
      const int units = units_of(call, piece.target, piece.queries, t);
      if (at - start < units) break;
      start += units;
      if (!call.joint) list = start;
    }
    piece.first = at - start;
    piece.part = 0;
#pragma unroll 1
    while (cut(block - piece.part) > list) piece.part = piece.part + 1;
  }

  // To the next slot that has keys; whether its queries are others.
  ON_DEVICE bool step(const Scan& call) {
    const int all = patches_of<REGION>(call.queries);
    bool other = false;
#pragma unroll 1
    do {
      piece.slot = piece.slot + 1;
      if (piece.slot < call.slots) continue;
      piece.slot = 0;
      other = true;
      piece.queries = piece.queries + 1;
      if (piece.queries < all) continue;
      piece.queries = 0;
      piece.target = piece.target + 1;
    } while (units_of(call, piece.target, piece.queries, piece.slot) == 0);
    piece.first = 0;
    if (other || !call.joint) piece.part = 0;
    return other;
  }

  ON_DEVICE bool more_slots(const Scan& call) const {
#pragma unroll 1
    for (int t = piece.slot + 1; t < call.slots; ++t) {
      if (units_of(call, piece.target, piece.queries, t) > 0) return true;
    }
    return false;
  }
};

}  // namespace timecycle
