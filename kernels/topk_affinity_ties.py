"""topk_affinity with ties="all": every key that equals the k-th value, in outputs sized by a counting pass.

The first pass (topk_affinity.py) finds each row's k-th product. A second one counts the keys that are at least equal,
the outputs get the length of the longest row, and a third pass fills them. All three compute products by the same
`dots` in the same tiles, so that equal products are bitwise equal in each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import limits, tiles
from .grid import near, patch_at, patch_corner, patch_places, scored_keys, slot_seen
from .merge import INVALID
from .plan import SIZES, Plan
from .tiles import Tile


def with_ties(plan: Plan, tile: Tile, kth: Tensor, denominators: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and indices [B, N, G, K] of all keys with products of at least kth [B, G, N]; K: the most of a row.

    denominators [B, N, G] are the logarithms of the softmax denominators over all keys, used if softmax_over_all.
    """
    (_, shares, _), _ = plan.launch_grid(tile)
    targets, groups, queries = kth.shape
    # How many keys each program finds; the cumulative sum over a list's groups of slots is where each one's part ends.
    numbers = torch.empty((targets, shares, queries), dtype=torch.int32, device=kth.device)
    nothing = kth.new_empty((targets, 0))
    options = ties_options(tiles.family(kth.device), tile)

    def run(fill: bool, starts: Tensor, values: Tensor, indices: Tensor, longest: int) -> None:
        for some in limits.evenly(targets, limits.MOST_PROGRAMS):
            part, tensors = plan.part(some), (limits.taken(x, some) for x in (kth, starts, values, indices))
            grid, each = part.launch_grid(tile)
            arguments = (*part.tensors(), *tensors, each, *part.numbers(), groups, longest)
            reached[grid](*arguments, FILL=fill, **part.constants(tile), **options)

    run(False, numbers, nothing, nothing.int(), 0)
    ends = numbers.unflatten(1, (groups, -1)).cumsum(dim=2, dtype=torch.int32)
    longest = max(1, int(ends[:, :, -1].max()))
    starts = ends.flatten(1, 2) - numbers
    values = torch.full((targets, queries, groups, longest), -torch.inf, device=kth.device)
    indices = torch.full_like(values, INVALID.value, dtype=torch.int32)
    run(True, starts, values, indices, longest)
    order = indices.sort(dim=3)
    best = values.gather(3, order.indices).sort(dim=3, descending=True, stable=True)
    logits, indices = best.values / plan.problem.temperature, order.values.gather(3, best.indices)
    exists = logits > -torch.inf
    shift = denominators[..., None] if plan.problem.softmax_over_all else logits.logsumexp(dim=3, keepdim=True)
    weights = torch.where(exists, (logits - shift).exp(), 0.0)
    if not plan.problem.joint:
        filled = (plan.frames >= 0) & (plan.frames < plan.bank_frames)
        weights /= filled.sum(dim=1).clamp(min=1)[:, None, None, None]
    return weights, torch.where(exists, indices, -1).long()


def ties_options(chip: str, tile: Tile) -> dict[str, int]:
    """Options of `reached`: on sm_80, ptxas would spill 12 bytes of Triton 3.6's code to reach 128 registers."""
    return {**tile.options(), **(tiles.all_registers(chip) if chip == "sm_80" else {})}


@triton.jit(do_not_specialize=["each", *SIZES, "groups", "longest"])
def reached(
    query,  # [B, N, D]
    bank,  # [F, M, D]
    frames,  # [B, T] int64
    multiplicity,  # [B, T, 2] int64
    kth,  # [B, groups, N] float32: the least product that is selected
    numbers,  # [B, S, N] int32: the number of selected keys (out); with FILL their offset in the row (in)
    values,  # out [B, N, groups, longest] float32
    indices,  # out [B, N, groups, longest] int32
    each,
    bank_frames, slots, height, width, key_height, key_width, channels, query_b, query_n, bank_f, bank_m, rows,
    columns, limit, softmax_scale_log2,
    groups,
    longest,
    FILL: tl.constexpr,
    NEIGHBORHOOD: tl.constexpr, PRECISION: tl.constexpr, EVEN: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
    D: tl.constexpr, N_WIDE: tl.constexpr, M_WIDE: tl.constexpr,
):  # fmt: skip
    """Count the keys whose product is at least the row's k-th, or with FILL write them. Grid and tiles as for scan."""
    split, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    group = split // (tl.num_programs(1) // groups)
    size, bounds = (key_height, key_width), (rows, columns, limit)
    corner = patch_corner(tl.program_id(0), width, N, N_WIDE)
    qy, qx, n, q_mask = patch_places(corner, height, width, N, N_WIDE)
    row = query + b * query_b + n.to(tl.int64) * query_n
    threshold = tl.load(kth + (b * groups + group) * (height * width) + n)
    number = tl.zeros((N,), tl.int32)
    out = ((b * (height * width) + n) * groups + group) * longest
    if FILL:
        out += tl.load(numbers + (b * tl.num_programs(1) + split) * (height * width) + n)
    for t in range(split * each, tl.minimum(slots, (split + 1) * each)):
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
                hit = (scores >= threshold[:, None]) & (counts > 0) & q_mask[:, None]
                if FILL:
                    scores = tl.where(hit, scores, float("-inf"))
                    index = tl.min(tl.where(hit, m[None, :], INVALID), axis=1)
                    # One key per row at a time, by ascending index, repeated by multiplicity.
                    while tl.min(index, axis=0) < INVALID:
                        value = tl.max(tl.where(m[None, :] == index[:, None], scores, float("-inf")), axis=1)
                        times = tl.full((N,), counted[0], tl.int32)
                        if NEIGHBORHOOD:
                            inside = near(
                                tl.abs(qy - index // key_width), tl.abs(qx - index % key_width), rows, columns, limit
                            )
                            times = tl.where(inside, *counted)
                        times = tl.where(index < INVALID, times, 0)
                        for again in range(tl.max(times, axis=0)):
                            tl.store(values + out + again, value, mask=again < times)
                            tl.store(indices + out + again, t * (key_height * key_width) + index, mask=again < times)
                        out += times
                        scores = tl.where(m[None, :] == index[:, None], float("-inf"), scores)
                        index = tl.min(tl.where(scores > float("-inf"), m[None, :], INVALID), axis=1)
                else:
                    number += tl.sum(tl.where(hit, counts, 0), axis=1)
    if not FILL:
        tl.store(numbers + (b * tl.num_programs(1) + split) * (height * width) + n, number, mask=q_mask)
