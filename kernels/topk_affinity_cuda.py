"""topk_affinity and affinity_propagate with the CUDA module's `scan` in place of Triton's. Letters as in timecycle.ops.

From features to the candidates of each query it is csrc/cuda/topk_affinity.h: wgmma and bulk copies on Hopper, mma.sync
and asynchronous copies on other chips. Triton's kernels merge the candidates and compute weights.
"""

from typing import Any

import torch
from torch import Tensor

from .affinity_propagate import propagate_candidates
from .launch import Launch
from .plan import Plan
from .topk_affinity import Best, Candidates, finish_candidates
from .work import Work, blocks_at_once


def topk_affinity(problem: Any, launch: Launch) -> tuple[Tensor, Tensor, Tensor]:
    """As topk_affinity.topk_affinity, for bfloat16 and float16 features and without ties="all"."""
    plan = _copied(Plan.of(problem))
    weights, indices, denominators, _ = finish_candidates(plan, *candidates_of(plan, launch))
    return weights.flatten(2), indices.flatten(2), denominators


def affinity_propagate(problem: Any, labels: Tensor, label_frames: Tensor, launch: Launch) -> Tensor:
    """As affinity_propagate.affinity_propagate, for bfloat16 and float16 features and without ties="all"."""
    plan = _copied(Plan.of(problem))
    return propagate_candidates(plan, *candidates_of(plan, launch), labels, label_frames)


def candidates_of(plan: Plan, launch: Launch) -> tuple[Best, int]:
    """As topk_affinity.candidates_of, for a plan from `_copied`."""
    whole = _work(plan, launch)

    def best(part: Plan) -> Candidates:
        return best_of_groups(part, whole if part is plan else _work(part, launch), launch)

    return best, whole.lists


def _work(plan: Plan, launch: Launch) -> Work:
    return Work.of(plan, blocks_at_once(plan.query.device), launch.module.lists_of_a_block(launch.hopper))


def best_of_groups(plan: Plan, work: Work, launch: Launch) -> Candidates:
    """As topk_affinity.best_of_groups, for a plan from `_copied` or a part of one."""
    shape = (plan.targets, work.lists, plan.queries)
    # Lists that no block writes, of empty slots and of unused parts, stay at -inf.
    values = plan.query.new_full((*shape, plan.problem.k), -torch.inf, dtype=torch.float32)
    tops = values.new_full(shape if plan.problem.softmax_over_all else (0,), -torch.inf)
    candidates = values, torch.empty_like(values, dtype=torch.int32), tops, torch.empty_like(tops)
    if values.numel():
        launch.module.topk_affinity(plan, work, candidates, launch)
    return candidates


def _copied(plan: Plan) -> Plan:
    """The plan with features that bulk copies can read."""
    query, bank = _copyable(plan.query), _copyable(plan.bank)
    same = query is plan.query and bank is plan.bank
    return plan if same else plan.changed(query=query, bank=bank)


def _copyable(features: Tensor) -> Tensor:
    """The features, or a copy, whose rows start and end at multiples of 16 bytes and do not overlap."""
    if features.shape[2] % 8:
        return torch.nn.functional.pad(features, (0, -features.shape[2] % 8))
    fits = features.data_ptr() % 16 == 0 and all(stride % 8 == 0 and stride for stride in features.stride()[:2])
    return features if fits else features.clone(memory_format=torch.contiguous_format)
