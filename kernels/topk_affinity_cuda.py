"""topk_affinity and affinity_propagate with the CUDA module's `scan` in place of Triton's. Letters as in timecycle.ops.

The long part, from features to the candidates of each query, is csrc/cuda/topk_affinity.h: wgmma and bulk copies on
Hopper, mma.sync and asynchronous copies on other chips. What becomes of the candidates is Triton's, as ever.
"""

import dataclasses

import torch
from torch import Tensor

from . import tiles
from .affinity_propagate import carry_candidates
from .call import Call
from .launch import Launch
from .topk_affinity import Best, Candidates, finish_candidates

QUERIES = 128  # of a block, and how many keys it takes at a time
REGION_TILE = (8, 16)  # rows and columns of such a patch with a region
A_BLOCK = 0.1  # what beginning and ending a block takes, in slots: counted from its copies and lists, not measured


def topk_affinity(
    query: Tensor,
    bank: Tensor,
    frames: Tensor,
    copies: Tensor,
    k: int,
    temperature: float,
    joint: bool,
    every: bool,
    ties: bool,
    width: int,
    reach: list[int],
    launch: Launch,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, indices and log-denominators, as topk_affinity.py gives them; features bfloat16 or float16, not ties."""
    call = _copied(Call.of(query, bank, frames, copies, temperature, joint, width, reach))
    best = candidates_of(call, k, joint, every, launch)
    weights, indices, denominators, _ = finish_candidates(call, *best, k, joint, every)
    return weights.flatten(2), indices.flatten(2), denominators


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
    launch: Launch,
) -> Tensor:
    """Soft labels, as affinity_propagate.py gives them; features bfloat16 or float16, not ties."""
    call = _copied(Call.of(query, bank, frames, copies, temperature, joint, width, reach))
    best = candidates_of(call, k, joint, every, launch)
    return carry_candidates(call, *best, labels, label_frames, k, joint, every)


def candidates_of(call: Call, k: int, joint: bool, every: bool, launch: Launch) -> tuple[Best, int]:
    """As topk_affinity.candidates_of, of a `_copied` call."""
    return lambda part: best_of_groups(part, k, joint, every, launch), lists(call, joint)


def lists(call: Call, joint: bool) -> int:
    """How many lists best_of_groups leaves for each query: two for each group of slots."""
    return 2 * (-(-call.slots // slots_of_a_block(call)) if joint else call.slots)


def best_of_groups(call: Call, k: int, joint: bool, every: bool, launch: Launch) -> Candidates:
    """Candidates as topk_affinity.best_of_groups has them, of a `_copied` call or a part of one."""
    each = slots_of_a_block(call)
    values = call.query.new_empty((len(call.query), lists(call, joint), call.queries, k), dtype=torch.float32)
    indices = torch.empty_like(values, dtype=torch.int32)
    tops, sums = (values.new_empty(values.shape[:3] if every else (0,)) for _ in range(2))
    if values.numel():
        height, key_height = (call.queries // call.width,) * 2 if call.region else (1, 1)
        launch.module.topk_affinity(
            *(tensor.data_ptr() for tensor in (*call.tensors(), values, indices, tops, sums)),
            *(len(call.query), len(call.bank)),
            (height, call.queries // height),
            (key_height, call.positions // key_height),
            (*call.query.stride()[:2], *call.bank.stride()[:2]),
            *(call.slots, each, call.query.shape[2], k),
            tuple(call.reach),
            call.scale,
            call.query.dtype == torch.bfloat16,
            *(call.region, joint, every),
            *(launch.hopper, launch.device, launch.stream),
        )
    return values, indices, tops, sums


def _copied(call: Call) -> Call:
    """The call with features that can be copied in bulk: once for all of its parts."""
    return dataclasses.replace(call, query=_copyable(call.query), bank=_copyable(call.bank))


def _copyable(features: Tensor) -> Tensor:
    """Features whose rows begin and end at multiples of 16 bytes and do not overlap: what can be copied in bulk."""
    if features.shape[2] % 8:
        return torch.nn.functional.pad(features, (0, -features.shape[2] % 8))
    fits = features.data_ptr() % 16 == 0 and all(stride % 8 == 0 and stride for stride in features.stride()[:2])
    return features if fits else features.clone(memory_format=torch.contiguous_format)


def slots_of_a_block(call: Call) -> int:
    """How many slots a block takes: those that end the call soonest if every multiprocessor runs a block at a time."""
    tall, wide = REGION_TILE if call.region else (1, QUERIES)
    columns = call.width if call.region else call.queries
    patches = -(-columns // wide) * -(-(call.queries // max(1, columns)) // tall) * call.together
    at_once = max(1, tiles.programs_at_once(call.query.device) // 2)

    def time(each: int) -> tuple[float, int]:
        return -(-patches * -(-call.slots // each) // at_once) * (each + A_BLOCK), -each

    return min(range(1, call.slots + 1), key=time)
