"""What a call of many targets is cut into parts for: memory, and how far a grid of programs counts."""

from torch import Tensor

MOST_PROGRAMS = 65_535
"""Along the second and the third dimension of a CUDA grid. Along the first there may be 2^31 - 1."""
WORKSPACE = 64 << 20
"""Bytes of candidates that are there at a time, unless one target has more.

At TimeCycle's crop 480 (3,600 queries, 8 slots, k = 5) a target has 2.8 MB in the CUDA module's two lists a slot, so
that 16 are one launch. No more is needed to keep a chip busy: at the largest k, 128, it is some 500 tiles of 128
queries in Triton's one list a slot, and an H100 has 132 multiprocessors.
"""


def cdiv(count: int, size: int) -> int:
    """Count / size, rounded up. Triton has this and the next function, but its own cost microseconds a call."""
    return -(-count // size)


def power_of_two(count: int) -> int:
    """The smallest that is not below count, which is positive."""
    return 1 << (count - 1).bit_length()


def evenly(count: int, most: int) -> list[slice]:
    """Parts of a batch of `count`, each of at most `most` and about as long as the others; none of an empty one."""
    if count <= most:
        return [slice(0, count)] if count else []
    each = cdiv(count, cdiv(count, most))
    return [slice(start, min(count, start + each)) for start in range(0, count, each)]


def taken(x: Tensor, part: slice) -> Tensor:
    """The part of a batch: x[part], or x itself where that is all of it, which costs nothing and is easily traced."""
    return x if part == slice(0, x.shape[0]) else x[part]
