"""Damage to the bytes of files: flipped bits, truncation, insertions, deletions, replaced numbers."""

import random

NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF]


def damaged(rng: random.Random, data: bytes, head: int = 256) -> bytes:
    """The bytes with one to four changes, every other one within the first `head` bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if not changed:
            break
        end = min(len(changed), head) if rng.random() < 0.5 else len(changed)
        at, way = rng.randrange(end), rng.randrange(8)
        if way < 3:
            changed[at] ^= 1 << rng.randrange(8)
        elif way == 3:
            changed[at] = rng.randrange(256)
        elif way == 4:
            del changed[at if rng.random() < 0.5 else rng.randrange(len(changed)) :]
        elif way == 5:
            changed[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif way == 6:
            del changed[at : at + rng.randrange(1, 9)]
        else:
            size = rng.choice([1, 2, 4, 8])
            number = rng.choice(NUMBERS) & ((1 << 8 * size) - 1)
            changed[at : at + size] = number.to_bytes(size, rng.choice(["little", "big"]))
    return bytes(changed)
