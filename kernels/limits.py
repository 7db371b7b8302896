"""Limits for which a call of many targets is split into parts: workspace memory and grid dimensions."""

from torch import Tensor

MOST_PROGRAMS = 65_535
"""Limit of the second and third dimension of a CUDA grid; that of the first is 2^31 - 1."""
WORKSPACE = 64 << 20
"""Most bytes of candidates in memory at a time, unless one target alone has more.

At TimeCycle's crop 480 (3,600 queries, 8 slots, k = 5) a target has 2.8 MB in the CUDA module's two lists per slot, so
16 targets are one launch. That is enough to occupy a GPU: at the largest k, 128, it is some 500 tiles of 128 queries in
Triton's one list per slot, and an H100 has 132 multiprocessors.
"""


def cdiv(count: int, size: int) -> int:
    """Count / size, rounded up. Triton's versions of this and the next function cost microseconds per call."""
    return -(-count // size)


def power_of_two(count: int) -> int:
    """The smallest power of two >= count > 0."""
    return 1 << (count - 1).bit_length()


def evenly(count: int, most: int) -> list[slice]:
    """Parts of about equal length of a batch of `count`, each of at most `most`; an empty batch has none."""
    if count <= most:
        return [slice(0, count)] if count else []
    each = cdiv(count, cdiv(count, most))
    return [slice(start, min(count, start + each)) for start in range(0, count, each)]


def taken(x: Tensor, part: slice) -> Tensor:
    """x[part], or x itself if the part is the whole batch."""
    return x if part == slice(0, x.shape[0]) else x[part]
