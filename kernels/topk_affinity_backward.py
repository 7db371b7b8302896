"""The gradient of topk_affinity in Triton, without the matrix; formulas in timecycle.ops.topk_affinity_backward.

Through the kept keys it is a gather and a scatter (propagate_labels.py). Through the denominators of softmax_over="all"
it is three products of the forward's size: products again, tile by tile, and from each tile's shares of the softmax the
gradient of the queries (one program a tile of queries) and of the bank (one a tile of keys). Every element of a
gradient is summed by one program in a fixed order: no atomics, and the same result every time. A gradient wider than a
slice takes the products again for each slice.
"""

from dataclasses import replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import limits, tiles
from .call import Call
from .grid import box, dots, patch_corner, patch_places, product, tile_at, times_counted
from .limits import cdiv, power_of_two
from .propagate_labels import propagate_labels, scatter_rows

LOG2_E = tl.constexpr(1.4426950408889634)


def topk_affinity_backward(
    gradient: Tensor,
    weights: Tensor,
    indices: Tensor,
    denominators: Tensor,
    query: Tensor,
    bank: Tensor,
    frames: Tensor,
    multiplicity: Tensor,
    temperature: float,
    joint: bool,
    softmax_over_all: bool,
    width: int,
    reach: list[int],
) -> tuple[Tensor, Tensor]:
    """Gradients of query [B, N, D] and bank [F, M, D], in their dtypes, summed in float32.

    gradient and weights [B, N, K] float32, indices [B, N, K] int64 and denominators [B, N, G] float32 belong to the
    result of the forward pass; the others are its arguments (topk_affinity.py).
    """
    groups = 1 if joint else frames.shape[1]
    own = torch.where(indices >= 0, weights * gradient, 0.0).unflatten(2, (groups, -1))  # w g
    mean = own.sum(dim=3, keepdim=True)  # G
    if not softmax_over_all:
        there = (frames >= 0) & (frames < len(bank))
        filled = 1 if joint else there.sum(dim=1)[:, None, None, None]
        own = own - weights.unflatten(2, (groups, -1)) * filled * mean
    share = own.flatten(2) / temperature
    d_query = propagate_labels(share, indices, bank, frames, dtype=torch.float32)
    d_bank = scatter_rows(query, share, indices, frames, torch.zeros(bank.shape, device=bank.device))
    if softmax_over_all and d_query.numel() and d_bank.numel():
        call = Call.of(query, bank, frames, multiplicity, temperature, joint, width, reach)
        _through_denominators(call, denominators.contiguous(), mean.squeeze(3) / temperature, d_query, d_bank)
    return d_query.to(query.dtype), d_bank.to(bank.dtype)


def _through_denominators(call: Call, denominators: Tensor, mean: Tensor, d_query: Tensor, d_bank: Tensor) -> None:
    """Add to d_query [B, N, D] and d_bank [F, M, D], float32: the part through the denominators.

    denominators, mean [B, N, G] float32: of each list, the logarithm of its denominator, and the sum of weight *
    gradient over its kept keys divided by the temperature.
    """
    tile = tiles.gradient_tile(tiles.family(d_query.device), call.query.dtype, call.precision)
    (targets, _, channels), bank_frames = d_query.shape, len(d_bank)
    constants = gradient_constants(call, tile)
    slices = cdiv(channels, constants["WIDE"])
    groups = denominators.shape[2]
    for some in limits.evenly(targets, limits.MOST_PROGRAMS):
        part, tensors = call.part(some), (limits.taken(x, some) for x in (denominators, mean, d_query))
        grid = (call.patches(tile.n), slices, len(part.query))
        to_queries[grid](*part.tensors(), *tensors, groups, *part.numbers(), **constants, **tile.options())
    for some in limits.evenly(bank_frames, limits.MOST_PROGRAMS):
        # Numbered from the first of them, the others' frames and empty slots equal none.
        frames = call.frames - some.start if some.start else call.frames
        part = replace(call, bank=limits.taken(call.bank, some), frames=frames)
        arguments = (*part.tensors(), denominators, mean, limits.taken(d_bank, some), groups, targets)
        grid = (call.patches(tile.m, keys=True), slices, len(part.bank))
        to_keys[grid](*arguments, *part.numbers(), **constants, **tile.options())


def gradient_constants(call: Call, tile: tiles.Tile) -> dict:
    """The compile-time arguments of to_queries and to_keys."""
    return {"WIDE": min(tile.wide, max(16, power_of_two(call.query.shape[2]))), **call.constants(tile)}


@triton.jit
def shares(scores, counts, denominator, mean, scale):
    """-mean * count * exp(product / temperature) / denominator, float32 [N, M]: the gradient of the products.

    scores, counts [N, M]; denominator, mean [N], the first as a logarithm of base 2.
    """
    part = tl.exp2(scores * scale - denominator[:, None]) * counts
    # A query that may see nothing has no denominator, and no gradient.
    return tl.where(counts > 0, part, 0.0) * -mean[:, None]


@triton.jit
def multiply(share, features, total, PRECISION: tl.constexpr):
    """The sum of total [X, D] and share [X, Y] @ features [Y, D]. Shares are too small for float16: it takes TF32."""
    if features.dtype == tl.bfloat16:
        total = product(share.to(tl.bfloat16), features, total, PRECISION)
    elif features.dtype == tl.float16:
        total = product(share, features.to(tl.float32), total, "tf32")
    else:
        total = product(share, features, total, PRECISION)
    return total


@triton.jit(
    do_not_specialize=[
        "groups",
        "bank_frames",
        "slots",
        "height",
        "width",
        "key_height",
        "key_width",
        "rows",
        "columns",
        "limit",
    ]
)
def to_queries(
    query,  # [B, N, D]
    bank,  # [F, M, D]
    frames,  # [B, T] int64
    multiplicity,  # [B, T, 2] int64
    denominators,  # [B, N, groups] float32
    mean,  # [B, N, groups] float32
    out,  # [B, N, D] float32, added to
    groups,
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
    WIDE: tl.constexpr,
    NEIGHBORHOOD: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    D: tl.constexpr,
    N_WIDE: tl.constexpr,
    M_WIDE: tl.constexpr,
):
    """WIDE channels of the gradient of a tile of queries. Grid: (tiles of queries, slices of channels, B)."""
    b = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * WIDE + tl.arange(0, WIDE)[None, :]
    top_y, left_x = patch_corner(tl.program_id(0), width, N, N_WIDE)
    qy, qx, n, q_mask = patch_places(top_y, left_x, height, width, N, N_WIDE)
    row = query + b * query_b + n.to(tl.int64) * query_n
    at = b * (height * width) + n
    total = tl.zeros((N, WIDE), tl.float32)
    for t in range(slots):
        frame = tl.load(frames + b * slots + t)
        inside_count = tl.load(multiplicity + (b * slots + t) * 2).to(tl.int32)
        outside_count = tl.load(multiplicity + (b * slots + t) * 2 + 1).to(tl.int32)
        group = tl.minimum(t, groups - 1)
        denominator = tl.load(denominators + at * groups + group, mask=q_mask, other=float("inf")) * LOG2_E
        weight = tl.load(mean + at * groups + group, mask=q_mask, other=0.0)
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
                share = shares(scores, counts, denominator, weight, scale)
                features = tl.load(keys[:, None] + channel, mask=channel < channels, other=0.0)
                total = multiply(share, features, total, PRECISION)
    place = out + at[:, None] * channels + channel
    mask = q_mask[:, None] & (channel < channels)
    tl.store(place, tl.load(place, mask=mask, other=0.0) + total, mask=mask)


@triton.jit(
    do_not_specialize=[
        "groups",
        "targets",
        "bank_frames",
        "slots",
        "height",
        "width",
        "key_height",
        "key_width",
        "rows",
        "columns",
        "limit",
    ]
)
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
    WIDE: tl.constexpr,
    NEIGHBORHOOD: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    N: tl.constexpr,
    M: tl.constexpr,
    D: tl.constexpr,
    N_WIDE: tl.constexpr,
    M_WIDE: tl.constexpr,
):
    """WIDE channels of the gradient of a tile of keys. Grid: (tiles of keys, slices of channels, F)."""
    f = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * WIDE + tl.arange(0, WIDE)[None, :]
    top_y, left_x = patch_corner(tl.program_id(0), key_width, M, M_WIDE)
    ky, kx, m, exists = patch_places(top_y, left_x, key_height, key_width, M, M_WIDE)
    keys = bank + f * bank_f + m.to(tl.int64) * bank_m
    total = tl.zeros((M, WIDE), tl.float32)
    for use in range(targets * slots):
        b, t = (use // slots).to(tl.int64), use % slots
        inside_count = tl.load(multiplicity + use * 2).to(tl.int32)
        outside_count = tl.load(multiplicity + use * 2 + 1).to(tl.int32)
        group = tl.minimum(t, groups - 1)
        first_y, end_y, first_x, end_x = box(
            top_y, left_x, height, width, rows, columns, outside_count, NEIGHBORHOOD, M, M_WIDE
        )
        across = tl.cdiv(end_x - first_x, N_WIDE)
        tiles = tl.cdiv(end_y - first_y, N // N_WIDE) * across
        if tl.load(frames + use) != f:
            tiles = 0
        for i in range(tiles):
            query_y, query_x, wanted = tile_at(
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
                M,
                M_WIDE,
                N,
                N_WIDE,
            )
            if wanted:
                qy, qx, n, q_mask = patch_places(query_y, query_x, height, width, N, N_WIDE)
                row = query + b * query_b + n.to(tl.int64) * query_n
                at = (b * (height * width) + n) * groups + group
                denominator = tl.load(denominators + at, mask=q_mask, other=float("inf")) * LOG2_E
                weight = tl.load(mean + at, mask=q_mask, other=0.0)
                scores = dots(row, keys, channels, N, M, D, EVEN, PRECISION)
                counts = times_counted(
                    qy, qx, ky, kx, exists, inside_count, outside_count, rows, columns, limit, NEIGHBORHOOD
                )
                share = shares(scores, counts, denominator, weight, scale)
                features = tl.load(row[:, None] + channel, mask=channel < channels, other=0.0)
                total = multiply(tl.trans(share), features, total, PRECISION)
    place = out + (f * (key_height * key_width) + m)[:, None] * channels + channel
    mask = exists[:, None] & (channel < channels)
    tl.store(place, tl.load(place, mask=mask, other=0.0) + total, mask=mask)
