"""topk_affinity in Triton: the forward pass, in two kernels. Letters as in timecycle.ops.

`scan` streams the keys of a few slots past a tile of queries: product, running maximum and sum of the softmax, and a
list of the k best keys in registers. Only a tile whose best key reaches a row's k-th value goes near the list. It
leaves k candidates per query and group of slots; `finish` merges the groups, lets keys that count several times take
several places, and weighs. With ties="all" two more passes follow (topk_affinity_ties.py).
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tiles
from .call import Call
from .grid import box, dots, patch_corner, patch_places, tile_at, times_counted
from .limits import cdiv, power_of_two, taken
from .merge import INVALID, filled_slots, merge, softmax, weigh
from .topk_affinity_ties import with_ties
from .traced import launched

LN_2 = tl.constexpr(0.6931471805599453)
Candidates = tuple[Tensor, Tensor, Tensor, Tensor]
"""What is known of each query and each of S lists: values and indices [B, S, N, k], tops and sums [B, S, N]."""
Best = Callable[[Call], Candidates]
"""Finds the candidates of a call, which is a part of the whole one."""


def topk_affinity(
    query: Tensor,
    bank: Tensor,
    frames: Tensor,
    multiplicity: Tensor,
    k: int,
    temperature: float,
    joint: bool,
    softmax_over_all: bool,
    ties: bool,
    width: int,
    reach: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, indices and log-denominators of the k best keys, as `timecycle.ops.topk_affinity` defines them.

    query [B, N, D] is float32, bfloat16 or float16, and bank [F, M, D] likewise; frames [B, T] int64, -1 for none;
    multiplicity [B, T, 2] int64: how often keys inside and outside the neighborhood count. k is at most LARGEST_K;
    width and reach are of the neighborhood's grid, 0 and [] without one.

    Returns:
        weights [B, N, K] float32, indices [B, N, K] int64, and the logarithms of the denominators: [B, N, G] float32
        if `softmax_over_all`, G = 1 or T, else [B, N, 0].
    """
    call = Call.of(query, bank, frames, multiplicity, temperature, joint, width, reach)
    groups = call.slots if not joint else 1
    if query.shape[0] * query.shape[1] == 0:
        empty = query.new_empty((*query.shape[:2], groups * (1 if ties else k)), dtype=torch.float32)
        return empty, empty.long(), empty.new_empty((*query.shape[:2], groups if softmax_over_all else 0))
    best = candidates_of(call, k, joint, softmax_over_all)
    weights, indices, denominators, kth = finish_candidates(call, *best, k, joint, softmax_over_all, ties)
    if ties:
        weights, indices = with_ties(call, _tile(call, k), kth, denominators, softmax_over_all)
    return weights.flatten(2), indices.flatten(2), denominators


def candidates_of(call: Call, k: int, joint: bool, softmax_over_all: bool) -> tuple[Best, int]:
    """What finds the candidates of a part of the call, and how many lists a query has there."""
    tile = _tile(call, k)
    (_, lists, _), _ = call.grid(tile, joint)
    return lambda part: best_of_groups(part, tile, k, joint, softmax_over_all), lists


def _tile(call: Call, k: int) -> tiles.Tile:
    return tiles.forward_tile(tiles.family(call.query.device), call.query.dtype, call.precision, k)


def best_of_groups(call: Call, tile: tiles.Tile, k: int, joint: bool, softmax_over_all: bool) -> Candidates:
    """Candidates of S groups of slots: products and indices [B, S, N, k], top and sum [B, S, N] of the softmax."""
    grid, each = call.grid(tile, joint)
    shape = (grid[2], grid[1], call.queries)
    values = call.query.new_empty((*shape, k), dtype=torch.float32)
    indices = torch.empty_like(values, dtype=torch.int32)
    tops, sums = (values.new_empty(shape if softmax_over_all else (0,)) for _ in range(2))
    launched(scan)[grid](
        *call.tensors(),
        values,
        indices,
        tops,
        sums,
        each,
        *call.numbers(),
        k,
        **scan_constants(call, tile, k, softmax_over_all),
        **tile.options(),
    )
    return values, indices, tops, sums


def scan_constants(call: Call, tile: tiles.Tile, k: int, softmax_over_all: bool) -> dict:
    """The compile-time arguments of scan."""
    return {"K": max(4, power_of_two(k)), "SOFTMAX_OVER_ALL": softmax_over_all, **call.constants(tile)}


def finish_candidates(
    call: Call, best: Best, lists: int, k: int, joint: bool, softmax_over_all: bool, ties: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights and indices [B, N, G, k], log-denominators [B, N, G], and with ties the last product kept [B, G, N].

    `best` finds the candidates, `lists` lists a query, of as many targets at a time as memory is meant for.
    """
    (count, queries, _), groups = call.query.shape, 1 if joint else call.slots
    weights = call.query.new_empty((count, queries, groups, k), dtype=torch.float32)
    kept = torch.empty_like(weights, dtype=torch.int64)
    denominators = weights.new_empty((count, queries, groups if softmax_over_all else 0))
    kth = weights.new_empty((count, groups if ties else 0, queries))
    for targets in call.parts(lists, k, softmax_over_all):
        part = call.part(targets)
        outputs = [taken(x, targets) for x in (weights, kept, denominators, kth)]
        _finish(
            part, best(part), outputs, k, softmax_over_all, ties
        )  # and the candidates are gone before the next part's
    return weights, kept, denominators, kth


def _finish(
    call: Call, candidates: Candidates, outputs: list[Tensor], k: int, softmax_over_all: bool, ties: bool
) -> None:
    """Write the outputs of finish_candidates for a part of its call."""
    groups = outputs[0].shape[2]
    merged = candidates[0].shape[1] // groups
    constants = finish_constants(call, k, merged, softmax_over_all, ties)
    launched(finish)[(cdiv(call.queries, constants["ROWS"]), groups, call.targets)](
        *candidates,
        call.frames,
        call.multiplicity,
        *outputs,
        call.queries,
        call.positions,
        call.bank_frames,
        call.slots,
        merged,
        max(1, call.width),
        *call.reach,
        k,
        call.scale,
        **constants,
        num_warps=4,
    )


def finish_constants(call: Call, k: int, merged: int, softmax_over_all: bool, ties: bool) -> dict:
    """The compile-time arguments of finish, which merges that many lists of k."""
    lists = power_of_two(merged * k)
    return {
        "K": power_of_two(k),
        "P": lists,
        "S": power_of_two(merged),
        "ROWS": max(1, min(64, 2048 // lists)),
        "MEAN": not call.joint,
        "SOFTMAX_OVER_ALL": softmax_over_all,
        "NEIGHBORHOOD": call.neighborhood,
        "TIES": ties,
    }


@triton.jit
def insert(scores, places, best, threshold, last, list_v, list_i, AGAIN: tl.constexpr):
    """Take the keys of one tile into the lists that they belong in, best first.

    scores [N, M], places [M] their indices, best [N] each row's largest score. list_v, list_i [N, K] are unordered;
    threshold, last [N] are value and index of each row's worst entry: a key goes in if its value is larger, or equal
    with a lower index. With AGAIN keys may come out of order, and equality alone is worth a look.
    """
    hit = best >= threshold if AGAIN else best > threshold
    hit &= best > float("-inf")
    while tl.max(hit.to(tl.int32), axis=0) > 0:
        index = tl.min(tl.where(scores == best[:, None], places[None, :], INVALID), axis=1)
        # Once a row's best is not better, nothing after it is: it would be smaller, or equal with a higher index.
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


@triton.jit(
    do_not_specialize=[
        "each",
        "bank_frames",
        "slots",
        "height",
        "width",
        "key_height",
        "key_width",
        "rows",
        "columns",
        "limit",
        "k",
    ]
)
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
    bank_frames,
    slots,
    height,
    width,
    key_height,
    key_width,
    channels,
    query_b,
    query_n,
    bank_f,
    bank_m,
    rows,
    columns,
    limit,
    scale,
    k,
    K: tl.constexpr,
    SOFTMAX_OVER_ALL: tl.constexpr,
    NEIGHBORHOOD: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    D: tl.constexpr,
    N_WIDE: tl.constexpr,
    M_WIDE: tl.constexpr,
):
    """One tile of N queries against the keys of slots group * each to (group + 1) * each.

    Queries are a grid of height x width, keys one of key_height x key_width: the same with a neighborhood, else a row.
    scale is log2(e) / temperature. Grid: (tiles of queries, S groups of slots, B).
    """
    group, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    top_y, left_x = patch_corner(tl.program_id(0), width, N, N_WIDE)
    qy, qx, n, q_mask = patch_places(top_y, left_x, height, width, N, N_WIDE)
    row = query + b * query_b + n.to(tl.int64) * query_n
    # Entries beyond k are out of the way: never the worst. A tile's spare rows let nothing in.
    entry = tl.arange(0, K)[None, :]
    list_v = tl.where((entry < k) & q_mask[:, None], float("-inf"), float("inf"))
    list_i = tl.where(entry < k, INVALID - entry, -2) + tl.zeros((N, 1), tl.int32)
    threshold, last = tl.min(list_v, axis=1), tl.max(list_i, axis=1)
    top, total = tl.full((N,), float("-inf"), tl.float32), tl.zeros((N,), tl.float32)
    for t in range(group * each, tl.minimum(slots, (group + 1) * each)):
        frame = tl.load(frames + b * slots + t)
        inside_count = tl.load(multiplicity + (b * slots + t) * 2).to(tl.int32)
        outside_count = tl.load(multiplicity + (b * slots + t) * 2 + 1).to(tl.int32)
        first_y, end_y, first_x, end_x = box(
            top_y, left_x, key_height, key_width, rows, columns, outside_count, NEIGHBORHOOD, N, N_WIDE
        )
        across = tl.cdiv(end_x - first_x, M_WIDE)
        tiles = tl.cdiv(end_y - first_y, M // M_WIDE) * across
        if (frame < 0) | (frame >= bank_frames):
            tiles = 0
        for i in range(tiles):
            key_y, key_x, wanted = tile_at(
                i,
                first_y,
                first_x,
                across,
                top_y,
                left_x,
                inside_count,
                outside_count,
                rows,
                columns,
                limit,
                NEIGHBORHOOD,
                N,
                N_WIDE,
                M,
                M_WIDE,
            )
            if wanted:
                ky, kx, m, exists = patch_places(key_y, key_x, key_height, key_width, M, M_WIDE)
                keys = bank + frame * bank_f + m.to(tl.int64) * bank_m
                scores = dots(row, keys, channels, N, M, D, EVEN, PRECISION)
                counts = times_counted(
                    qy, qx, ky, kx, exists, inside_count, outside_count, rows, columns, limit, NEIGHBORHOOD
                )
                scores = tl.where(counts > 0, scores, float("-inf"))
                best = tl.max(scores, axis=1)
                if SOFTMAX_OVER_ALL:
                    new = tl.maximum(top, best)
                    shift = tl.where(new == float("-inf"), 0.0, new)
                    mass = tl.exp2((scores - shift[:, None]) * scale) * counts
                    total = total * tl.exp2((top - shift) * scale) + tl.sum(mass, axis=1)
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


@triton.jit(
    do_not_specialize=[
        "queries",
        "positions",
        "bank_frames",
        "slots",
        "merged",
        "width",
        "rows",
        "columns",
        "limit",
        "k",
    ]
)
def finish(
    values,  # [B, S, N, k] float32, and the next three: what scan leaves; S = groups * merged
    indices,  # [B, S, N, k] int32
    tops,  # [B, S, N] float32
    sums,  # [B, S, N] float32
    frames,  # [B, T] int64
    multiplicity,  # [B, T, 2] int64
    weights,  # out [B, N, groups, k] float32
    kept,  # out [B, N, groups, k] int64
    denominators,  # out [B, N, groups] float32, natural logarithm
    kth,  # out [B, groups, N] float32: the last product kept, +inf if there is none
    queries,
    positions,
    bank_frames,
    slots,
    merged,
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
    TIES: tl.constexpr,
):
    """Merge the candidates of a group, in order, each as often as it counts; and weigh them.

    Grid: (tiles of ROWS queries, groups, B).
    """
    group, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    q_mask = n < queries
    part = (b * tl.num_programs(1) + group) * merged
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
    exists = out_v > float("-inf")
    shift, total = softmax(out_v, tops, sums, part, n, q_mask, queries, merged, scale, S, SOFTMAX_OVER_ALL)
    if SOFTMAX_OVER_ALL:
        at = (b * queries + n) * tl.num_programs(1) + group
        logarithm = shift * scale * LN_2 + tl.log(tl.where(total == 0, 1.0, total))
        tl.store(denominators + at, tl.where(total == 0, float("-inf"), logarithm), mask=q_mask)
    if TIES:
        lowest = tl.min(tl.where(exists, out_v, float("inf")), axis=1)
        tl.store(kth + (b * tl.num_programs(1) + group) * queries + n, lowest, mask=q_mask)
    share = weigh(out_v, shift, total, scale)
    if MEAN:
        share /= filled_slots(frames + b * slots, bank_frames, slots)
    place = tl.arange(0, K)[None, :]
    at = ((b * queries + n[:, None]) * tl.num_programs(1) + group) * k + place
    tl.store(weights + at, share, mask=q_mask[:, None] & (place < k))
    tl.store(kept + at, tl.where(exists, out_i, -1).to(tl.int64), mask=q_mask[:, None] & (place < k))
