"""From candidates to neighbors: what topk_affinity and affinity_propagate do with the lists that scan writes."""

import triton
import triton.language as tl

from .grid import near

INVALID = tl.constexpr(2**31 - 1)  # larger than every index: a missing neighbor


MERGE_SIZES = ["queries", "positions", "bank_frames", "slots", "merged", "width", "rows", "columns", "limit", "k"]
"""Arguments of merging kernels for whose values Triton must not specialize."""


@triton.jit
def merge(
    lists,  # values and indices [lists, N, k] of scan; N, M, and the number of lists to merge
    multiplicity,  # of the target: [T, 2] int64
    part,
    n,
    q_mask,
    width,
    bounds,
    k,
    K: tl.constexpr,
    P: tl.constexpr,
    ROWS: tl.constexpr,
    NEIGHBORHOOD: tl.constexpr,
):
    """Products and indices [ROWS, K] of the k best of `merged` lists from `part` on, best first; -inf for missing ones.

    A key appears as often as its multiplicity says.
    """
    (values, indices, queries, positions, merged), (rows, columns, limit) = lists, bounds
    candidate = tl.arange(0, P)[None, :]
    at = ((part + candidate // k) * queries + n[:, None]) * k + candidate % k
    mask = q_mask[:, None] & (candidate < merged * k)
    value = tl.load(values + at, mask=mask, other=float("-inf"))
    index = tl.load(indices + at, mask=mask, other=INVALID)
    mask &= value > float("-inf")
    t, m = tl.where(mask, index // positions, 0), index % positions
    left = tl.load(multiplicity + t * 2, mask=mask, other=0).to(tl.int32)
    if NEIGHBORHOOD:
        dy, dx = tl.abs(n[:, None] // width - m // width), tl.abs(n[:, None] % width - m % width)
        inside = near(dy, dx, rows, columns, limit)
        left = tl.where(inside, left, tl.load(multiplicity + t * 2 + 1, mask=mask, other=0).to(tl.int32))
    place = tl.arange(0, K)[None, :]
    out_v = tl.full((ROWS, K), float("-inf"), tl.float32)
    out_i = tl.full((ROWS, K), -1, tl.int32)
    for j in range(k):
        value = tl.where(left > 0, value, float("-inf"))
        best = tl.max(value, axis=1)
        chosen = tl.min(tl.where(value == best[:, None], index, INVALID), axis=1)
        out_v = tl.where(place == j, best[:, None], out_v)
        out_i = tl.where(place == j, chosen[:, None], out_i)
        left = tl.where(index == chosen[:, None], left - 1, left)
    return out_v, out_i


@triton.jit
def softmax(
    out_v,
    tops,
    sums,
    part,
    n,
    q_mask,
    queries,
    merged,
    softmax_scale_log2,
    S: tl.constexpr,
    SOFTMAX_OVER_ALL: tl.constexpr,
):
    """Shift and sum [ROWS] of the softmax over all keys, or over the top k, out_v; the sum is 0 without a key."""
    if SOFTMAX_OVER_ALL:
        split = tl.arange(0, S)[None, :]
        at = (part + split) * queries + n[:, None]
        top = tl.load(tops + at, mask=q_mask[:, None] & (split < merged), other=float("-inf"))
        total = tl.load(sums + at, mask=q_mask[:, None] & (split < merged), other=0.0)
        total = tl.where(top > float("-inf"), total, 0.0)  # sums of unwritten lists are undefined
        shift = tl.max(top, axis=1)
        shift = tl.where(shift == float("-inf"), 0.0, shift)
        total = tl.sum(total * tl.exp2((top - shift[:, None]) * softmax_scale_log2), axis=1)
    else:
        shift = tl.max(out_v, axis=1)
        shift = tl.where(shift == float("-inf"), 0.0, shift)
        total = tl.sum(tl.exp2((out_v - shift[:, None]) * softmax_scale_log2), axis=1)
    return shift, total


@triton.jit
def weigh(out_v, shift, total, softmax_scale_log2):
    """The softmax [ROWS, K]; 0 for missing neighbors."""
    part = tl.exp2((out_v - shift[:, None]) * softmax_scale_log2) / tl.where(total == 0, 1.0, total)[:, None]
    return tl.where(out_v > float("-inf"), part, 0.0)


@triton.jit
def filled_slots(frames, bank_frames, slots):
    """How many of a target's slots hold one of the `bank_frames` frames, at least 1, as float32."""
    filled = 0
    for t in range(slots):
        frame = tl.load(frames + t)
        filled += ((frame >= 0) & (frame < bank_frames)).to(tl.int32)
    return tl.maximum(filled, 1).to(tl.float32)
