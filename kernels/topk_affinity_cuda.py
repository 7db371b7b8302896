"""topk_affinity and affinity_propagate with the CUDA module's `scan` in place of Triton's. Letters as in timecycle.ops.

The long part, from features to the candidates of each query, is csrc/cuda/topk_affinity.h: wgmma and bulk copies on
Hopper, mma.sync and asynchronous copies on other chips. What becomes of the candidates is Triton's, as ever.
"""

import dataclasses

import torch
from torch import Tensor

from .affinity_propagate import carry_candidates
from .call import Call
from .launch import Launch
from .topk_affinity import Best, Candidates, finish_candidates
from .work import Work, blocks_at_once


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
    launch: Launch,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, indices and log-denominators, as topk_affinity.py gives them; features bfloat16 or float16, not ties."""
    call = _copied(Call.of(query, bank, frames, multiplicity, temperature, joint, width, reach))
    best = candidates_of(call, k, joint, softmax_over_all, launch)
    weights, indices, denominators, _ = finish_candidates(call, *best, k, joint, softmax_over_all)
    return weights.flatten(2), indices.flatten(2), denominators


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
    launch: Launch,
) -> Tensor:
    """Soft labels, as affinity_propagate.py gives them; features bfloat16 or float16, not ties."""
    call = _copied(Call.of(query, bank, frames, multiplicity, temperature, joint, width, reach))
    best = candidates_of(call, k, joint, softmax_over_all, launch)
    return carry_candidates(call, *best, labels, label_frames, k, joint, softmax_over_all)


def candidates_of(call: Call, k: int, joint: bool, softmax_over_all: bool, launch: Launch) -> tuple[Best, int]:
    """As topk_affinity.candidates_of, of a `_copied` call."""
    whole = _work(call, joint, launch)

    def best(part: Call) -> Candidates:
        work = whole if part is call else _work(part, joint, launch)
        return best_of_groups(part, work, k, joint, softmax_over_all, launch)

    return best, whole.lists


def _work(call: Call, joint: bool, launch: Launch) -> Work:
    return Work.of(call, joint, blocks_at_once(call.query.device), launch.module.lists_of_a_block(launch.hopper))


def best_of_groups(call: Call, work: Work, k: int, joint: bool, softmax_over_all: bool, launch: Launch) -> Candidates:
    """Candidates as topk_affinity.best_of_groups has them, of a `_copied` call or a part of one."""
    shape = (call.targets, work.lists, call.queries)
    # What no block writes is -inf: lists of parts that there are not, and of empty slots.
    values = call.query.new_full((*shape, k), -torch.inf, dtype=torch.float32)
    tops = values.new_full(shape if softmax_over_all else (0,), -torch.inf)
    indices, sums = torch.empty_like(values, dtype=torch.int32), torch.empty_like(tops)
    if values.numel():
        launch.module.topk_affinity(
            *(tensor.data_ptr() for tensor in (*call.tensors(), work.before, values, indices, tops, sums)),
            *(call.targets, call.bank_frames),
            *call.grids,
            (*call.query.stride()[:2], *call.bank.stride()[:2]),
            *(call.slots, work.parts, work.rounds, work.blocks, call.query.shape[2], k),
            tuple(call.reach),
            call.scale,
            call.query.dtype == torch.bfloat16,
            *(call.neighborhood, joint, softmax_over_all),
            *(launch.hopper, launch.device, launch.stream),
        )
    return values, indices, tops, sums


def _copied(call: Call) -> Call:
    """The call with features that can be copied in bulk: once for all of its parts."""
    query, bank = _copyable(call.query), _copyable(call.bank)
    same = query is call.query and bank is call.bank
    return call if same else dataclasses.replace(call, query=query, bank=bank)


def _copyable(features: Tensor) -> Tensor:
    """Features whose rows begin and end at multiples of 16 bytes and do not overlap: what can be copied in bulk."""
    if features.shape[2] % 8:
        return torch.nn.functional.pad(features, (0, -features.shape[2] % 8))
    fits = features.data_ptr() % 16 == 0 and all(stride % 8 == 0 and stride for stride in features.stride()[:2])
    return features if fits else features.clone(memory_format=torch.contiguous_format)
