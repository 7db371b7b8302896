"""affinity_propagate in Triton: from features and labels to labels. Letters as in timecycle.ops.

The candidates are those of topk_affinity; a second kernel merges and weighs them as topk_affinity does, and adds up the
labels at once, so that neither weights nor indices reach memory.
"""

import triton
import triton.language as tl
from torch import Tensor

from . import tiles
from .call import Call
from .merge import filled_slots, merge, softmax, weigh
from .propagate_labels import propagate_labels
from .topk_affinity import Candidates, best_of_groups, finish_constants, topk_affinity

WIDEST = 64  # columns of labels that one program adds up, beside the candidates that it merges


def affinity_propagate(
    query: Tensor,
    bank: Tensor,
    frames: Tensor,
    labels: Tensor,
    label_frames: Tensor,
    copies: Tensor,
    k: int,
    temperature: float,
    joint: bool,
    every: bool,
    ties: bool,
    width: int,
    reach: list[int],
) -> Tensor:
    """Soft labels [B, N, L] float32 of the queries, as `timecycle.ops.affinity_propagate` defines them.

    labels [G, M, L] float32; label_frames [B, T] int64, a slot outside G carries none. The others are those of
    topk_affinity.py.
    """
    if ties:  # a row keeps as many as there are, which the fixed lists of one pass cannot hold
        weights, indices, _ = topk_affinity(
            query, bank, frames, copies, k, temperature, joint, every, ties, width, reach
        )
        return propagate_labels(weights, indices, labels, label_frames)
    call = Call.of(query, bank, frames, copies, temperature, joint, width, reach)
    if not query.shape[0] * query.shape[1]:
        return labels.new_empty((*query.shape[:2], labels.shape[2]))
    tile = tiles.forward_tile(tiles.family(query.device), query.dtype, call.precision, k)
    candidates = best_of_groups(call, tile, k, joint, every)
    return carry_candidates(call, candidates, labels, label_frames, k, joint, every)


def carry_candidates(
    call: Call, candidates: Candidates, labels: Tensor, label_frames: Tensor, k: int, joint: bool, every: bool
) -> Tensor:
    """Soft labels [B, N, L], as affinity_propagate returns them, from the candidates."""
    labels, label_frames = labels.contiguous(), label_frames.contiguous()
    out = labels.new_empty((*call.query.shape[:2], labels.shape[2]))
    if not out.numel():
        return out
    values, indices, tops, sums = candidates
    groups = 1 if joint else call.slots
    merged = values.shape[1] // groups
    constants = carry_constants(call, k, merged, every, out.shape[2])
    grid = (
        triton.cdiv(call.queries, constants["ROWS"]),
        triton.cdiv(out.shape[2], constants["COLUMNS"]),
        len(call.query),
    )
    carry[grid](
        values,
        indices,
        tops,
        sums,
        call.frames,
        call.copies,
        labels,
        label_frames,
        out,
        groups,
        call.queries,
        call.positions,
        call.banked,
        len(labels),
        call.slots,
        merged,
        out.shape[2],
        max(1, call.width),
        *call.reach,
        k,
        call.scale,
        **constants,
        **carry_options(tiles.family(call.query.device)),
    )
    return out


def carry_constants(call: Call, k: int, merged: int, every: bool, length: int) -> dict:
    """The compile-time arguments of carry, which merges that many lists of k and adds up labels of that length."""
    constants = finish_constants(call, k, merged, every, False)
    del constants["TIES"]
    return {**constants, "COLUMNS": min(WIDEST, triton.next_power_of_2(length))}


def carry_options(chip: str) -> dict[str, int]:
    """How carry is compiled: left alone, NVIDIA's ptxas spills a few registers to get more programs in."""
    return {"num_warps": 4, "maxnreg": 255} if chip.startswith("sm_") else {"num_warps": 4}


@triton.jit(
    do_not_specialize=[
        "groups",
        "queries",
        "positions",
        "banked",
        "maps",
        "slots",
        "merged",
        "width",
        "rows",
        "columns",
        "limit",
        "k",
    ]
)
def carry(
    values,  # [B, S, N, k] float32, and the next three: what scan leaves; S = groups * merged
    indices,  # [B, S, N, k] int32
    tops,  # [B, S, N] float32
    sums,  # [B, S, N] float32
    frames,  # [B, T] int64
    copies,  # [B, T, 2] int64
    labels,  # [G, M, L] float32
    label_frames,  # [B, T] int64
    out,  # out [B, N, L] float32
    groups,
    queries,
    positions,
    banked,
    maps,
    slots,
    merged,
    length,
    width,
    rows,
    columns,
    limit,
    k,
    scale,
    K: tl.constexpr,
    P: tl.constexpr,
    S: tl.constexpr,
    ROWS: tl.constexpr,
    MEAN: tl.constexpr,
    EVERY: tl.constexpr,
    REGION: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Merge and weigh the candidates of every group, and add up COLUMNS of their labels.

    Grid: (tiles of ROWS queries, tiles of columns, B).
    """
    b = tl.program_id(2).to(tl.int64)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    asks, inside = n < queries, column < length
    place = tl.arange(0, K)[None, :]
    sum_of_labels = tl.zeros((ROWS, COLUMNS), tl.float32)
    for group in range(groups):
        part = (b * groups + group) * merged
        out_v, out_i = merge(
            values,
            indices,
            copies + b * slots * 2,
            part,
            n,
            asks,
            queries,
            positions,
            merged,
            width,
            rows,
            columns,
            limit,
            k,
            K,
            P,
            ROWS,
            REGION,
        )
        shift, total = softmax(out_v, tops, sums, part, n, asks, queries, merged, scale, S, EVERY)
        share = weigh(out_v, shift, total, scale)
        if MEAN:
            share /= filled_slots(frames + b * slots, banked, slots)
        index = tl.where(out_v > float("-inf"), out_i, -1)
        for j in range(k):
            weight = tl.sum(tl.where(place == j, share, 0.0), axis=1)
            key = tl.max(tl.where(place == j, index, -1), axis=1)
            there = asks & (key >= 0)
            source = tl.load(label_frames + b * slots + key // positions, mask=there, other=-1)
            there &= (source >= 0) & (source < maps)
            row = tl.where(there, source * positions + key % positions, 0)
            label = tl.load(labels + row[:, None] * length + column, mask=there[:, None] & inside, other=0.0)
            sum_of_labels += weight[:, None] * label
    at = (b * queries + n[:, None]) * length + column
    tl.store(out + at, sum_of_labels, mask=asks[:, None] & inside)
