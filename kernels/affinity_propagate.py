"""affinity_propagate in Triton: from features and labels to labels. Letters as in timecycle.ops.

The candidates are those of topk_affinity. A second kernel merges and weighs them as topk_affinity does, and sums the
labels directly, so that neither weights nor indices are written to memory.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from . import tiles
from .limits import cdiv, power_of_two, taken
from .merge import MERGE_SIZES, filled_slots, merge, softmax, weigh
from .plan import Plan
from .propagate_labels import propagate_labels
from .topk_affinity import Best, Candidates, candidates_of, merge_constants, merge_numbers, topk_affinity

WIDEST = 64  # most columns of labels that one program sums


def affinity_propagate(problem: Any, labels: Tensor, label_frames: Tensor) -> Tensor:
    """Soft labels [B, N, L] float32 of the queries, as `timecycle.ops.affinity_propagate` defines them.

    labels [G, M, L] float32; label_frames [B, T] int64, an index outside G means no labels. Features as in
    topk_affinity.py.
    """
    if problem.keep_ties:  # the length of a row depends on the data
        weights, indices, _ = topk_affinity(problem)
        return propagate_labels(weights, indices, labels, label_frames)
    plan = Plan.of(problem)
    if not plan.targets * plan.queries:
        return labels.new_empty((plan.targets, plan.queries, labels.shape[2]))
    return propagate_candidates(plan, *candidates_of(plan), labels, label_frames)


def propagate_candidates(plan: Plan, best: Best, lists: int, labels: Tensor, label_frames: Tensor) -> Tensor:
    """Soft labels [B, N, L], as affinity_propagate returns them, from the candidates of finish_candidates."""
    labels, label_frames = labels.contiguous(), label_frames.contiguous()
    out = labels.new_empty((plan.targets, plan.queries, labels.shape[2]))
    if out.numel():
        for targets in plan.parts(lists):
            part = plan.part(targets)
            _propagate(part, best(part), labels, taken(label_frames, targets), taken(out, targets))
    return out


def _propagate(plan: Plan, candidates: Candidates, labels: Tensor, label_frames: Tensor, out: Tensor) -> None:
    """Write the soft labels of a part of a plan."""
    maps, length = len(labels), out.shape[2]
    merged = candidates[0].shape[1] // plan.groups
    constants = propagate_constants(plan, merged, length)
    tensors = (*candidates, plan.frames, plan.multiplicity, labels, label_frames, out)
    numbers = (plan.groups, maps, length, *merge_numbers(plan, merged))
    grid = (cdiv(plan.queries, constants["ROWS"]), cdiv(length, constants["COLUMNS"]), plan.targets)
    propagate[grid](*tensors, *numbers, **constants, **propagate_options(tiles.family(plan.query.device)))


def propagate_constants(plan: Plan, merged: int, length: int) -> dict:
    """The compile-time arguments of propagate, for that number of lists to merge and that number of classes."""
    return {**merge_constants(plan, merged), "COLUMNS": min(WIDEST, power_of_two(length))}


def propagate_options(chip: str) -> dict[str, int]:
    """How propagate is compiled."""
    return {"num_warps": 4, **tiles.all_registers(chip)}


@triton.jit(do_not_specialize=["groups", "maps", *MERGE_SIZES])
def propagate(
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
    maps,
    length,
    queries, positions, bank_frames, slots, merged, width, rows, columns, limit, k, softmax_scale_log2,
    K: tl.constexpr, P: tl.constexpr, S: tl.constexpr, ROWS: tl.constexpr, MEAN: tl.constexpr,
    SOFTMAX_OVER_ALL: tl.constexpr, NEIGHBORHOOD: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Merge and weigh the candidates of every group, and sum COLUMNS of their labels.

    Grid: (tiles of ROWS queries, tiles of columns, B).
    """
    b = tl.program_id(2).to(tl.int64)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    q_mask, inside = n < queries, column < length
    place = tl.arange(0, K)[None, :]
    sum_of_labels = tl.zeros((ROWS, COLUMNS), tl.float32)
    lists, bounds = (values, indices, queries, positions, merged), (rows, columns, limit)
    for group in range(groups):
        part = (b * groups + group) * merged
        out_v, out_i = merge(
            lists, multiplicity + b * slots * 2, part, n, q_mask, width, bounds, k, K, P, ROWS, NEIGHBORHOOD
        )
        shift, total = softmax(
            out_v, tops, sums, part, n, q_mask, queries, merged, softmax_scale_log2, S, SOFTMAX_OVER_ALL
        )
        share = weigh(out_v, shift, total, softmax_scale_log2)
        if MEAN:
            share /= filled_slots(frames + b * slots, bank_frames, slots)
        index = tl.where(out_v > float("-inf"), out_i, -1)
        for j in range(k):
            weight = tl.sum(tl.where(place == j, share, 0.0), axis=1)
            key = tl.max(tl.where(place == j, index, -1), axis=1)
            mask = q_mask & (key >= 0)
            source = tl.load(label_frames + b * slots + key // positions, mask=mask, other=-1)
            mask &= (source >= 0) & (source < maps)
            row = tl.where(mask, source * positions + key % positions, 0)
            label = tl.load(labels + row[:, None] * length + column, mask=mask[:, None] & inside, other=0.0)
            sum_of_labels += weight[:, None] * label
    at = (b * queries + n[:, None]) * length + column
    tl.store(out + at, sum_of_labels, mask=q_mask[:, None] & inside)
