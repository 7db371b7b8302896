"""affinity_propagate in Triton: from features and labels to labels. Letters as in timecycle.ops.

The candidates are those of topk_affinity; a second kernel merges and weighs them as topk_affinity does, and adds up the
labels at once, so that neither weights nor indices reach memory.
"""

import triton
import triton.language as tl
from torch import Tensor

from . import tiles
from .call import Call
from .limits import cdiv, power_of_two, taken
from .merge import filled_slots, merge, softmax, weigh
from .propagate_labels import propagate_labels
from .topk_affinity import Best, Candidates, candidates_of, finish_constants, topk_affinity

WIDEST = 64  # columns of labels that one program adds up, beside the candidates that it merges


def affinity_propagate(
    query: Tensor,
    bank: Tensor,
    frames: Tensor,
    labels: Tensor,
    label_frames: Tensor,
    multiplicity: Tensor,
    k: int,
    temperature: float,
    joint: bool,
    softmax_over_all: bool,
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
            query, bank, frames, multiplicity, k, temperature, joint, softmax_over_all, ties, width, reach
        )
        return propagate_labels(weights, indices, labels, label_frames)
    call = Call.of(query, bank, frames, multiplicity, temperature, joint, width, reach)
    if not query.shape[0] * query.shape[1]:
        return labels.new_empty((*query.shape[:2], labels.shape[2]))
    best = candidates_of(call, k, joint, softmax_over_all)
    return carry_candidates(call, *best, labels, label_frames, k, joint, softmax_over_all)


def carry_candidates(
    call: Call,
    best: Best,
    lists: int,
    labels: Tensor,
    label_frames: Tensor,
    k: int,
    joint: bool,
    softmax_over_all: bool,
) -> Tensor:
    """Soft labels [B, N, L], as affinity_propagate returns them, from candidates as finish_candidates takes them."""
    labels, label_frames = labels.contiguous(), label_frames.contiguous()
    out = labels.new_empty((*call.query.shape[:2], labels.shape[2]))
    if out.numel():
        groups = 1 if joint else call.slots
        for targets in call.parts(lists, k, softmax_over_all):
            part = call.part(targets)
            own, sums = taken(label_frames, targets), taken(out, targets)
            _carry(part, best(part), labels, own, sums, groups, k, softmax_over_all)
    return out


def _carry(
    call: Call,
    candidates: Candidates,
    labels: Tensor,
    label_frames: Tensor,
    out: Tensor,
    groups: int,
    k: int,
    softmax_over_all: bool,
) -> None:
    """Write the soft labels of a part of a call."""
    merged = candidates[0].shape[1] // groups
    constants = carry_constants(call, k, merged, softmax_over_all, out.shape[2])
    grid = (
        cdiv(call.queries, constants["ROWS"]),
        cdiv(out.shape[2], constants["COLUMNS"]),
        call.targets,
    )
    carry[grid](
        *candidates,
        call.frames,
        call.multiplicity,
        labels,
        label_frames,
        out,
        groups,
        call.queries,
        call.positions,
        call.bank_frames,
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


def carry_constants(call: Call, k: int, merged: int, softmax_over_all: bool, length: int) -> dict:
    """The compile-time arguments of carry, which merges that many lists of k and adds up labels of that length."""
    constants = finish_constants(call, k, merged, softmax_over_all, False)
    del constants["TIES"]
    return {**constants, "COLUMNS": min(WIDEST, power_of_two(length))}


def carry_options(chip: str) -> dict[str, int]:
    """How carry is compiled."""
    return {"num_warps": 4, **tiles.all_registers(chip)}


@triton.jit(
    do_not_specialize=[
        "groups",
        "queries",
        "positions",
        "bank_frames",
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
    multiplicity,  # [B, T, 2] int64
    labels,  # [G, M, L] float32
    label_frames,  # [B, T] int64
    out,  # out [B, N, L] float32
    groups,
    queries,
    positions,
    bank_frames,
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
    SOFTMAX_OVER_ALL: tl.constexpr,
    NEIGHBORHOOD: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Merge and weigh the candidates of every group, and add up COLUMNS of their labels.

    Grid: (tiles of ROWS queries, tiles of columns, B).
    """
    b = tl.program_id(2).to(tl.int64)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    q_mask, inside = n < queries, column < length
    place = tl.arange(0, K)[None, :]
    sum_of_labels = tl.zeros((ROWS, COLUMNS), tl.float32)
    for group in range(groups):
        part = (b * groups + group) * merged
        out_v, out_i = merge(
            values,
            indices,
            multiplicity + b * slots * 2,
            part,
            n,
            q_mask,
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
            NEIGHBORHOOD,
        )
        shift, total = softmax(out_v, tops, sums, part, n, q_mask, queries, merged, scale, S, SOFTMAX_OVER_ALL)
        share = weigh(out_v, shift, total, scale)
        if MEAN:
            share /= filled_slots(frames + b * slots, bank_frames, slots)
        index = tl.where(out_v > float("-inf"), out_i, -1)
        for j in range(k):
            weight = tl.sum(tl.where(place == j, share, 0.0), axis=1)
            key = tl.max(tl.where(place == j, index, -1), axis=1)
            there = q_mask & (key >= 0)
            source = tl.load(label_frames + b * slots + key // positions, mask=there, other=-1)
            there &= (source >= 0) & (source < maps)
            row = tl.where(there, source * positions + key % positions, 0)
            label = tl.load(labels + row[:, None] * length + column, mask=there[:, None] & inside, other=0.0)
            sum_of_labels += weight[:, None] * label
    at = (b * queries + n[:, None]) * length + column
    tl.store(out + at, sum_of_labels, mask=q_mask[:, None] & inside)
