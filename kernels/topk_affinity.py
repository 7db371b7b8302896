"""topk_affinity in Triton: the forward pass, in two kernels. Letters as in timecycle.ops.

`scan` multiplies a tile of queries with the keys of a few slots, tile by tile, and keeps the running maximum and sum of
the softmax and a list of the k best keys in registers. Only tiles whose best key is among a row's k best so far change
the list. It writes k candidates per query and group of slots; `finish` merges the groups, repeats keys by multiplicity,
and computes weights. With ties="all" two more passes follow (topk_affinity_ties.py).
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tiles
from .grid import patch_at, patch_corner, patch_places, scored_keys, slot_seen
from .limits import cdiv, power_of_two, taken
from .merge import INVALID, MERGE_SIZES, filled_slots, merge, softmax, weigh
from .plan import SIZES, Plan
from .topk_affinity_ties import with_ties
from .traced import launched

LN_2 = tl.constexpr(0.6931471805599453)
Candidates = tuple[Tensor, Tensor, Tensor, Tensor]
"""Of each query and each of S lists: values and indices [B, S, N, k], maxima and sums [B, S, N] of the softmax."""
Best = Callable[[Plan], Candidates]
"""Finds the candidates of a part of the plan."""


def topk_affinity(problem: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, indices and log-denominators of the k best keys, as `timecycle.ops.topk_affinity` defines them.

    Features are float32, bfloat16 or float16; k is at most LARGEST_K.

    Returns:
        weights [B, N, K] float32, indices [B, N, K] int64, and the logarithms of the denominators: [B, N, G] float32
        if softmax_over_all, G = 1 or T, else [B, N, 0].
    """
    plan = Plan.of(problem)
    if plan.targets * plan.queries == 0:
        kept = plan.groups * (1 if problem.keep_ties else problem.k)
        empty = plan.query.new_empty((plan.targets, plan.queries, kept), dtype=torch.float32)
        denominators = (plan.targets, plan.queries, plan.groups if problem.softmax_over_all else 0)
        return empty, empty.long(), empty.new_empty(denominators)
    weights, indices, denominators, kth = finish_candidates(plan, *candidates_of(plan))
    if problem.keep_ties:
        weights, indices = with_ties(plan, _tile(plan), kth, denominators)
    return weights.flatten(2), indices.flatten(2), denominators


def candidates_of(plan: Plan) -> tuple[Best, int]:
    """The function that finds the candidates of a part of the plan, and the number of lists per query."""
    tile = _tile(plan)
    (_, lists, _), _ = plan.launch_grid(tile)
    return lambda part: best_of_groups(part, tile), lists


def _tile(plan: Plan) -> tiles.Tile:
    return tiles.forward_tile(tiles.family(plan.query.device), plan.query.dtype, plan.precision, plan.problem.k)


def best_of_groups(plan: Plan, tile: tiles.Tile) -> Candidates:
    """Candidates of S groups of slots: products and indices [B, S, N, k], top and sum [B, S, N] of the softmax."""
    (grid, each), k = plan.launch_grid(tile), plan.problem.k
    shape = (grid[2], grid[1], plan.queries)
    values = plan.query.new_empty((*shape, k), dtype=torch.float32)
    indices = torch.empty_like(values, dtype=torch.int32)
    tops, sums = (values.new_empty(shape if plan.problem.softmax_over_all else (0,)) for _ in range(2))
    arguments = (*plan.tensors(), values, indices, tops, sums, each, *plan.numbers(), k)
    launched(scan)[grid](*arguments, **scan_constants(plan, tile), **tile.options())
    return values, indices, tops, sums


def scan_constants(plan: Plan, tile: tiles.Tile) -> dict:
    """The compile-time arguments of scan."""
    problem = plan.problem
    return {
        "K": max(4, power_of_two(problem.k)),
        "SOFTMAX_OVER_ALL": problem.softmax_over_all,
        **plan.constants(tile),
    }


def finish_candidates(plan: Plan, best: Best, lists: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights and indices [B, N, G, k], log-denominators [B, N, G], and with ties the last product kept [B, G, N].

    `best` finds the candidates of some targets, `lists` lists per query: as many targets at a time as the workspace
    holds.
    """
    problem, rows = plan.problem, (plan.targets, plan.queries)
    weights = plan.query.new_empty((*rows, plan.groups, problem.k), dtype=torch.float32)
    kept = torch.empty_like(weights, dtype=torch.int64)
    denominators = weights.new_empty((*rows, plan.groups if problem.softmax_over_all else 0))
    kth = weights.new_empty((plan.targets, plan.groups if problem.keep_ties else 0, plan.queries))
    for targets in plan.parts(lists):
        part = plan.part(targets)
        outputs = [taken(x, targets) for x in (weights, kept, denominators, kth)]
        _finish(part, best(part), outputs)  # the candidates are freed before the next part
    return weights, kept, denominators, kth


def _finish(plan: Plan, candidates: Candidates, outputs: list[Tensor]) -> None:
    """Write the outputs of finish_candidates for a part of its plan."""
    merged = candidates[0].shape[1] // plan.groups
    constants = finish_constants(plan, merged)
    tensors = (*candidates, plan.frames, plan.multiplicity, *outputs)
    grid = (cdiv(plan.queries, constants["ROWS"]), plan.groups, plan.targets)
    launched(finish)[grid](*tensors, *merge_numbers(plan, merged), **constants, num_warps=4)


def merge_numbers(plan: Plan, merged: int) -> tuple[int | float, ...]:
    """Arguments of a kernel that merges that many lists, from `queries` to `softmax_scale_log2`."""
    sizes = (plan.queries, plan.positions, plan.bank_frames, plan.slots, merged, max(1, plan.problem.grid_width))
    return *sizes, *plan.bounds, plan.problem.k, plan.softmax_scale_log2


def merge_constants(plan: Plan, merged: int) -> dict:
    """Compile-time arguments of merging kernels."""
    problem = plan.problem
    lists = power_of_two(merged * problem.k)
    return {
        "K": power_of_two(problem.k),
        "P": lists,
        "S": power_of_two(merged),
        "ROWS": max(1, min(64, 2048 // lists)),
        "MEAN": not problem.joint,
        "SOFTMAX_OVER_ALL": problem.softmax_over_all,
        "NEIGHBORHOOD": plan.neighborhood,
    }


def finish_constants(plan: Plan, merged: int) -> dict:
    """The compile-time arguments of finish."""
    return {**merge_constants(plan, merged), "TIES": plan.problem.keep_ties}


@triton.jit
def insert(scores, places, best, threshold, last, list_v, list_i, AGAIN: tl.constexpr):
    """Insert the keys of one tile that belong in the lists, best first.

    scores [N, M]; places [M]: their indices; best [N]: the largest score of each row. list_v, list_i [N, K] are
    unordered; threshold, last [N] are value and index of each row's worst entry: a key replaces it if its value is
    larger, or equal with a lower index. AGAIN: keys may come out of order, so that equal values must be compared too.
    """
    hit = best >= threshold if AGAIN else best > threshold
    hit &= best > float("-inf")
    while tl.max(hit.to(tl.int32), axis=0) > 0:
        index = tl.min(tl.where(scores == best[:, None], places[None, :], INVALID), axis=1)
        # If a row's best key does not belong in the list, no other does: it is smaller, or equal with a higher index.
        hit &= (best > threshold) | ((best == threshold) & (index < last))
        here = hit[:, None] & (list_i == last[:, None])
        list_v = tl.where(here, best[:, None], list_v)
        list_i = tl.where(here, index[:, None], list_i)
        scores = tl.where(places[None, :] == index[:, None], float("-inf"), scores)
        threshold = tl.min(list_v, axis=1)
        last = tl.max(tl.where(list_v == threshold[:, None], list_i, -1), axis=1)
        best = tl.max(scores, axis=1)
        hit &= (best >= threshold if AGAIN else best > threshold) & (best > float("-inf"))
    return threshold, last, list_v, list_i


@triton.jit(do_not_specialize=["each", *SIZES, "k"])
def scan(
    query,  # [B, N, D]
    bank,  # [F, M, D]
    frames,  # [B, T] int64
    multiplicity,  # [B, T, 2] int64
    values,  # out [B, S, N, k] float32: products of the kept keys, in no order; -inf where there are fewer
    indices,  # out [B, S, N, k] int32: t * M + m
    tops,  # out [B, S, N] float32: the largest product, -inf if there is none
    sums,  # out [B, S, N] float32: sum of count * exp((product - top) / temperature)
    each,
    bank_frames, slots, height, width, key_height, key_width, channels, query_b, query_n, bank_f, bank_m, rows,
    columns, limit, softmax_scale_log2,
    k,
    K: tl.constexpr,
    SOFTMAX_OVER_ALL: tl.constexpr,
    NEIGHBORHOOD: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
    D: tl.constexpr, N_WIDE: tl.constexpr, M_WIDE: tl.constexpr,
):  # fmt: skip
    """One tile of N queries with the keys of slots group * each to (group + 1) * each.

    Queries are a grid of height x width, keys of key_height x key_width: the same with a neighborhood, else one row.
    Grid: (tiles of queries, S groups of slots, B).
    """
    group, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    size, bounds = (key_height, key_width), (rows, columns, limit)
    corner = patch_corner(tl.program_id(0), width, N, N_WIDE)
    qy, qx, n, q_mask = patch_places(corner, height, width, N, N_WIDE)
    row = query + b * query_b + n.to(tl.int64) * query_n
    # Entries beyond k and rows beyond the queries are +inf, so that nothing replaces them.
    entry = tl.arange(0, K)[None, :]
    list_v = tl.where((entry < k) & q_mask[:, None], float("-inf"), float("inf"))
    list_i = tl.where(entry < k, INVALID - entry, -2) + tl.zeros((N, 1), tl.int32)
    threshold, last = tl.min(list_v, axis=1), tl.max(list_i, axis=1)
    top, total = tl.full((N,), float("-inf"), tl.float32), tl.zeros((N,), tl.float32)
    for t in range(group * each, tl.minimum(slots, (group + 1) * each)):
        frame, counted, seen, tiles = slot_seen(
            frames, multiplicity, b * slots, t, bank_frames, corner, size, bounds, NEIGHBORHOOD, N, N_WIDE, M, M_WIDE
        )
        for i in range(tiles):
            y, x, wanted = patch_at(i, seen, corner, counted, bounds, NEIGHBORHOOD, N, N_WIDE, M, M_WIDE)
            if wanted:
                m, _, scores, counts = scored_keys(
                    (row, qy, qx), (y, x), size, bank + frame * bank_f, bank_m, channels, counted, bounds,
                    NEIGHBORHOOD, PRECISION, EVEN, N, M, D, M_WIDE,
                )  # fmt: skip
                scores = tl.where(counts > 0, scores, float("-inf"))
                best = tl.max(scores, axis=1)
                if SOFTMAX_OVER_ALL:
                    new = tl.maximum(top, best)
                    shift = tl.where(new == float("-inf"), 0.0, new)
                    mass = tl.exp2((scores - shift[:, None]) * softmax_scale_log2) * counts
                    total = total * tl.exp2((top - shift) * softmax_scale_log2) + tl.sum(mass, axis=1)
                    top = new
                threshold, last, list_v, list_i = insert(
                    scores, t * (key_height * key_width) + m, best, threshold, last, list_v, list_i, NEIGHBORHOOD
                )
    at = (b * tl.num_programs(1) + group) * (height * width) + n
    tl.store(values + at[:, None] * k + entry, list_v, mask=q_mask[:, None] & (entry < k))
    tl.store(indices + at[:, None] * k + entry, list_i, mask=q_mask[:, None] & (entry < k))
    if SOFTMAX_OVER_ALL:
        tl.store(tops + at, top, mask=q_mask)
        tl.store(sums + at, total, mask=q_mask)


@triton.jit(do_not_specialize=MERGE_SIZES)
def finish(
    values,  # [B, S, N, k] float32; this and the next three are scan's outputs; S = groups * merged
    indices,  # [B, S, N, k] int32
    tops,  # [B, S, N] float32
    sums,  # [B, S, N] float32
    frames,  # [B, T] int64
    multiplicity,  # [B, T, 2] int64
    weights,  # out [B, N, groups, k] float32
    kept,  # out [B, N, groups, k] int64
    denominators,  # out [B, N, groups] float32, natural logarithm
    kth,  # out [B, groups, N] float32: the last product kept, +inf if there is none
    queries, positions, bank_frames, slots, merged, width, rows, columns, limit, k, softmax_scale_log2,
    K: tl.constexpr, P: tl.constexpr, S: tl.constexpr, ROWS: tl.constexpr, MEAN: tl.constexpr,
    SOFTMAX_OVER_ALL: tl.constexpr, NEIGHBORHOOD: tl.constexpr,
    TIES: tl.constexpr,
):  # fmt: skip
    """Merge the candidates of a group, best first, repeated by multiplicity, and compute their weights.

    Grid: (tiles of ROWS queries, groups, B).
    """
    group, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    q_mask = n < queries
    part = (b * tl.num_programs(1) + group) * merged
    lists, bounds = (values, indices, queries, positions, merged), (rows, columns, limit)
    out_v, out_i = merge(
        lists, multiplicity + b * slots * 2, part, n, q_mask, width, bounds, k, K, P, ROWS, NEIGHBORHOOD
    )
    exists = out_v > float("-inf")
    shift, total = softmax(out_v, tops, sums, part, n, q_mask, queries, merged, softmax_scale_log2, S, SOFTMAX_OVER_ALL)
    if SOFTMAX_OVER_ALL:
        at = (b * queries + n) * tl.num_programs(1) + group
        logarithm = shift * softmax_scale_log2 * LN_2 + tl.log(tl.where(total == 0, 1.0, total))
        tl.store(denominators + at, tl.where(total == 0, float("-inf"), logarithm), mask=q_mask)
    if TIES:
        lowest = tl.min(tl.where(exists, out_v, float("inf")), axis=1)
        tl.store(kth + (b * tl.num_programs(1) + group) * queries + n, lowest, mask=q_mask)
    share = weigh(out_v, shift, total, softmax_scale_log2)
    if MEAN:
        share /= filled_slots(frames + b * slots, bank_frames, slots)
    place = tl.arange(0, K)[None, :]
    at = ((b * queries + n[:, None]) * tl.num_programs(1) + group) * k + place
    tl.store(weights + at, share, mask=q_mask[:, None] & (place < k))
    tl.store(kept + at, tl.where(exists, out_i, -1).to(tl.int64), mask=q_mask[:, None] & (place < k))
