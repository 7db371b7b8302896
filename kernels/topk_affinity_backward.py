"""The gradient of topk_affinity in Triton, without the matrix; formulas in timecycle.ops.topk_affinity_backward.

Through the selected keys it is a gather and a scatter (propagate_labels.py). Through the denominators of
softmax_over="all" it is three products of the forward's size: the products are recomputed tile by tile, and the softmax
of each tile gives the gradient of the queries (one program per tile of queries) and of the bank (one per tile of keys).
Every element of a gradient is summed by one program in a fixed order: no atomics, and the same result every time. A
gradient wider than a slice recomputes the products for each slice.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import limits, tiles
from .grid import (
    counts_of,
    dots,
    patch_at,
    patch_corner,
    patch_places,
    patches_seen,
    product,
    scored_keys,
    times_counted,
)
from .limits import cdiv, power_of_two
from .plan import SIZES, Plan
from .propagate_labels import propagate_labels, scatter_rows

LOG2_E = tl.constexpr(1.4426950408889634)


def topk_affinity_backward(
    problem: Any, gradient: Tensor, weights: Tensor, indices: Tensor, denominators: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of query [B, N, D] and bank [F, M, D], in their dtypes, summed in float32.

    gradient and weights [B, N, K] float32, indices [B, N, K] int64 and denominators [B, N, G] float32 belong to the
    result of the forward pass (topk_affinity.py).
    """
    query, bank, frames = problem.query, problem.bank, problem.frames
    groups = 1 if problem.joint else frames.shape[1]
    own = torch.where(indices >= 0, weights * gradient, 0.0).unflatten(2, (groups, -1))  # w g
    mean = own.sum(dim=3, keepdim=True)  # G
    if not problem.softmax_over_all:
        is_filled = (frames >= 0) & (frames < len(bank))
        filled = 1 if problem.joint else is_filled.sum(dim=1)[:, None, None, None]
        own = own - weights.unflatten(2, (groups, -1)) * filled * mean
    share = own.flatten(2) / problem.temperature
    d_query = propagate_labels(share, indices, bank, frames, dtype=torch.float32)
    d_bank = scatter_rows(query, share, indices, frames, torch.zeros(bank.shape, device=bank.device))
    if problem.softmax_over_all and d_query.numel() and d_bank.numel():
        plan, mean = Plan.of(problem), mean.squeeze(3) / problem.temperature
        _through_denominators(plan, denominators.contiguous(), mean, d_query, d_bank)
    return d_query.to(query.dtype), d_bank.to(bank.dtype)


def _through_denominators(plan: Plan, denominators: Tensor, mean: Tensor, d_query: Tensor, d_bank: Tensor) -> None:
    """Add to d_query [B, N, D] and d_bank [F, M, D], float32: the part through the denominators.

    denominators, mean [B, N, G] float32: of each list, the logarithm of its denominator, and the sum of weight *
    gradient over its kept keys divided by the temperature.
    """
    tile = tiles.gradient_tile(tiles.family(d_query.device), plan.query.dtype, plan.precision)
    constants = gradient_constants(plan, tile)
    slices = cdiv(plan.channels, constants["WIDE"])
    for some in limits.evenly(plan.targets, limits.MOST_PROGRAMS):
        part, tensors = plan.part(some), (limits.taken(x, some) for x in (denominators, mean, d_query))
        grid = (plan.patches(tile.n), slices, part.targets)
        to_queries[grid](*part.tensors(), *tensors, plan.groups, *part.numbers(), **constants, **tile.options())
    for some in limits.evenly(plan.bank_frames, limits.MOST_PROGRAMS):
        # Frames are renumbered from the first of the part, so that those outside it, and empty slots, match none.
        frames = plan.frames - some.start if some.start else plan.frames
        part = plan.changed(bank=limits.taken(plan.bank, some), frames=frames)
        tensors = (*part.tensors(), denominators, mean, limits.taken(d_bank, some))
        grid = (plan.patches(tile.m, keys=True), slices, part.bank_frames)
        to_keys[grid](*tensors, plan.groups, plan.targets, *part.numbers(), **constants, **tile.options())


def gradient_constants(plan: Plan, tile: tiles.Tile) -> dict:
    """The compile-time arguments of to_queries and to_keys."""
    return {"WIDE": min(tile.wide, max(16, power_of_two(plan.channels))), **plan.constants(tile)}


@triton.jit
def shares(scores, counts, denominator, mean, softmax_scale_log2):
    """-mean * count * exp(product / temperature) / denominator, float32 [N, M]: the gradient of the products.

    scores, counts [N, M]; denominator, mean [N], the first as a logarithm of base 2.
    """
    part = tl.exp2(scores * softmax_scale_log2 - denominator[:, None]) * counts
    # A query without keys has a denominator of 0, and no gradient.
    return tl.where(counts > 0, part, 0.0) * -mean[:, None]


@triton.jit
def multiply(share, features, total, PRECISION: tl.constexpr):
    """The sum of total [X, D] and share [X, Y] @ features [Y, D]. float16 uses TF32, since shares may be tiny."""
    if features.dtype == tl.bfloat16:
        total = product(share.to(tl.bfloat16), features, total, PRECISION)
    elif features.dtype == tl.float16:
        total = product(share, features.to(tl.float32), total, "tf32")
    else:
        total = product(share, features, total, PRECISION)
    return total


@triton.jit(do_not_specialize=["groups", *SIZES])
def to_queries(
    query,  # [B, N, D]
    bank,  # [F, M, D]
    frames,  # [B, T] int64
    multiplicity,  # [B, T, 2] int64
    denominators,  # [B, N, groups] float32
    mean,  # [B, N, groups] float32
    out,  # [B, N, D] float32, added to
    groups,
    bank_frames, slots, height, width, key_height, key_width, channels, query_b, query_n, bank_f, bank_m, rows,
    columns, limit, softmax_scale_log2,
    WIDE: tl.constexpr,
    NEIGHBORHOOD: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
    D: tl.constexpr, N_WIDE: tl.constexpr, M_WIDE: tl.constexpr,
):  # fmt: skip
    """WIDE channels of the gradient of a tile of queries. Grid: (tiles of queries, slices of channels, B)."""
    b = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * WIDE + tl.arange(0, WIDE)[None, :]
    size, bounds = (key_height, key_width), (rows, columns, limit)
    corner = patch_corner(tl.program_id(0), width, N, N_WIDE)
    qy, qx, n, q_mask = patch_places(corner, height, width, N, N_WIDE)
    row = query + b * query_b + n.to(tl.int64) * query_n
    at = b * (height * width) + n
    total = tl.zeros((N, WIDE), tl.float32)
    for t in range(slots):
        frame = tl.load(frames + b * slots + t)
        counted = counts_of(multiplicity, b * slots + t)
        group = tl.minimum(t, groups - 1)
        denominator = tl.load(denominators + at * groups + group, mask=q_mask, other=float("inf")) * LOG2_E
        weight = tl.load(mean + at * groups + group, mask=q_mask, other=0.0)
        first_y, first_x, across, tiles = patches_seen(
            corner, size, bounds, counted[1], NEIGHBORHOOD, N, N_WIDE, M, M_WIDE
        )
        if (frame < 0) | (frame >= bank_frames):
            tiles = 0
        for i in range(tiles):
            y, x, wanted = patch_at(
                i, (first_y, first_x, across), corner, counted, bounds, NEIGHBORHOOD, N, N_WIDE, M, M_WIDE
            )
            if wanted:
                _, keys, scores, counts = scored_keys(
                    (row, qy, qx), (y, x), size, bank + frame * bank_f, bank_m, channels, counted, bounds,
                    NEIGHBORHOOD, PRECISION, EVEN, N, M, D, M_WIDE,
                )  # fmt: skip
                share = shares(scores, counts, denominator, weight, softmax_scale_log2)
                features = tl.load(keys[:, None] + channel, mask=channel < channels, other=0.0)
                total = multiply(share, features, total, PRECISION)
    place = out + at[:, None] * channels + channel
    mask = q_mask[:, None] & (channel < channels)
    tl.store(place, tl.load(place, mask=mask, other=0.0) + total, mask=mask)


@triton.jit(do_not_specialize=["groups", "targets", *SIZES])
def to_keys(
    query,  # [B, N, D]
    bank,  # [F, M, D]
    frames,  # [B, T] int64
    multiplicity,  # [B, T, 2] int64
    denominators,  # [B, N, groups] float32
    mean,  # [B, N, groups] float32
    out,  # [F, M, D] float32, added to
    groups,
    targets,
    bank_frames, slots, height, width, key_height, key_width, channels, query_b, query_n, bank_f, bank_m, rows,
    columns, limit, softmax_scale_log2,
    WIDE: tl.constexpr,
    NEIGHBORHOOD: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
    D: tl.constexpr, N_WIDE: tl.constexpr, M_WIDE: tl.constexpr,
):  # fmt: skip
    """WIDE channels of the gradient of a tile of keys. Grid: (tiles of keys, slices of channels, F)."""
    f = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * WIDE + tl.arange(0, WIDE)[None, :]
    bounds, corner = (rows, columns, limit), patch_corner(tl.program_id(0), key_width, M, M_WIDE)
    ky, kx, m, exists = patch_places(corner, key_height, key_width, M, M_WIDE)
    keys = bank + f * bank_f + m.to(tl.int64) * bank_m
    total = tl.zeros((M, WIDE), tl.float32)
    for use in range(targets * slots):
        b, t = (use // slots).to(tl.int64), use % slots
        counted = counts_of(multiplicity, use)
        group = tl.minimum(t, groups - 1)
        first_y, first_x, across, tiles = patches_seen(
            corner, (height, width), bounds, counted[1], NEIGHBORHOOD, M, M_WIDE, N, N_WIDE
        )
        if tl.load(frames + use) != f:
            tiles = 0
        for i in range(tiles):
            query_y, query_x, wanted = patch_at(
                i, (first_y, first_x, across), corner, counted, bounds, NEIGHBORHOOD, M, M_WIDE, N, N_WIDE
            )
            if wanted:
                qy, qx, n, q_mask = patch_places((query_y, query_x), height, width, N, N_WIDE)
                row = query + b * query_b + n.to(tl.int64) * query_n
                at = (b * (height * width) + n) * groups + group
                denominator = tl.load(denominators + at, mask=q_mask, other=float("inf")) * LOG2_E
                weight = tl.load(mean + at, mask=q_mask, other=0.0)
                scores = dots(row, keys, channels, N, M, D, EVEN, PRECISION)
                counts = times_counted(qy, qx, ky, kx, exists, counted, bounds, NEIGHBORHOOD)
                share = shares(scores, counts, denominator, weight, softmax_scale_log2)
                features = tl.load(row[:, None] + channel, mask=channel < channels, other=0.0)
                total = multiply(tl.trans(share), features, total, PRECISION)
    place = out + (f * (key_height * key_width) + m)[:, None] * channels + channel
    mask = exists[:, None] & (channel < channels)
    tl.store(place, tl.load(place, mask=mask, other=0.0) + total, mask=mask)
