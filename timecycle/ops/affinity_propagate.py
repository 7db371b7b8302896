"""affinity_propagate: from features and labels to labels, for callers who need no indices.

    out[b, n] = sum over the kept keys of  weight * labels[g, m]
                with g = label_frames[b, t]

with the kept keys and weights of topk_affinity, which defines them, and the sum of propagate_labels. The CPU kernel
adds a query's labels up as soon as its list is complete, so that neither weights nor indices are stored, and rows that
keep more than others (ties="all") need no padding.
"""

from typing import Any

import torch
from torch import Tensor

from timecycle import deprecated
from timecycle.errors import InputError
from timecycle.ops import backends, packed
from timecycle.ops.checks import bounds_checked, refuse, refuse_tangents, wide_dtype
from timecycle.ops.problem import Problem, list_length, value_doubts
from timecycle.ops.propagate_labels import check_labels, label_frame_doubt, propagate_labels_backward
from timecycle.ops.propagate_labels import reference as labels_reference
from timecycle.ops.selection import Neighborhood, Select
from timecycle.ops.topk_affinity import candidates
from timecycle.ops.topk_affinity import operator as topk_operator
from timecycle.ops.topk_affinity_backward import topk_affinity_backward


@deprecated.keywords(region="neighborhood", copies="multiplicity")
def affinity_propagate(
    query: Tensor,
    bank: Tensor,
    frames: Tensor,
    labels: Tensor,
    label_frames: Tensor,
    select: Select,
    *,
    neighborhood: Neighborhood | None = None,
    multiplicity: Tensor | None = None,
    backend: str | None = None,
    check: bool = True,
) -> Tensor:
    """Soft labels of the queries, from features and labels of their context: `topk_affinity` and `propagate_labels`.

    Args:
        query: [B, N, D] features of the targets, as for `topk_affinity`.
        bank: [F, M, D] features of the context, as for `topk_affinity`.
        frames: [B, T] int64: slot t of target b holds frame frames[b, t] of the bank; -1 is an empty slot.
        labels: [G, M, L] soft labels of any floating dtype.
        label_frames: [B, T] int64: slot t of target b carries label map label_frames[b, t]; -1 is an empty slot.
        select: what is kept and how it is weighted.
        neighborhood: which keys a query may see.
        multiplicity: how often positions count, as for `topk_affinity`.
        backend: 'cuda', 'triton', 'cpu' or 'reference'; the first that can run the call if not given.
        check: refuse values that are not finite or point outside. On a GPU the CPU waits for it once; without it a
            frame outside the bank counts as an empty slot, and a label map outside the labels contributes nothing.

    Returns:
        [B, N, L], float32 (float64 for float64 features). Differentiable in query, bank and labels.

    Raises:
        InputError: as `topk_affinity` and `propagate_labels`.
    """
    problem = Problem.of(query, bank, frames, select, neighborhood, multiplicity)
    if labels.is_complex():
        raise InputError(f"labels is {labels.dtype}; expected real numbers")
    labels = labels.to(wide_dtype(query))
    check_labels(labels, label_frames, len(query), wide_dtype(query), "label_frames")
    if labels.shape[1] != bank.shape[1] or label_frames.shape != frames.shape:
        raise InputError(
            f"labels has shape {list(labels.shape)} and label_frames {list(label_frames.shape)}; expected "
            f"[G, {bank.shape[1]}, L] like bank's positions and {list(frames.shape)} like frames"
        )
    if not labels.device == label_frames.device == query.device:
        raise InputError(
            f"labels is on {labels.device} and label_frames on {label_frames.device}; expected both on {query.device}"
        )
    refuse_tangents(query, bank, labels)
    run = _operator if packed.needs_gradient(query, bank, labels) else _without_autograd
    return run(labels, label_frames, *problem, backend or "", check)


def _run(*arguments: Any) -> Tensor:
    labels, label_frames, problem, backend, check = packed.unpack(Problem, arguments, before=2)
    doubts = value_doubts(problem, check)
    if bounds_checked(check, labels):
        doubts.append(label_frame_doubt(labels, label_frames, "label_frames"))
    refuse(doubts)
    problem = problem.keeping(list_length(problem))
    chosen = backends.choose("affinity_propagate", backend or None, problem, labels, label_frames)
    return chosen.run(problem, labels, label_frames)


def _fake(*arguments):  # type: ignore[no-untyped-def]
    labels, _, problem, *_ = packed.unpack(Problem, arguments, before=2)
    return labels.new_empty((*problem.query.shape[:2], labels.shape[2]))


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    labels, label_frames, problem, ctx.backend, _ = packed.unpack(Problem, inputs, before=2)
    packed.save(ctx, problem, labels, label_frames)


def _backward(ctx, gradient):  # type: ignore[no-untyped-def]
    problem, labels, label_frames = packed.saved(ctx, Problem)
    d_labels, d_query, d_bank = _gradients(gradient, labels, label_frames, *problem, ctx.backend)
    return packed.input_gradients(ctx, d_labels, None, d_query, d_bank)


@torch.library.custom_op(
    "timecycle::affinity_propagate_backward",
    mutates_args=(),
    schema=f"(Tensor gradient, Tensor labels, Tensor label_frames, {packed.schema(Problem)}, str backend) -> "
    "(Tensor, Tensor, Tensor)",
)
def _gradients(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of labels, query and bank. Weights and indices are made again: the forward spares storing them."""
    gradient, labels, label_frames, problem, backend = packed.unpack(Problem, arguments, before=3)
    problem = problem.keeping(list_length(problem))
    weights, indices, denominators = topk_operator(*problem, backend, False)
    d_weights, d_labels = propagate_labels_backward(gradient, weights, indices, labels, label_frames)
    results = (d_weights, weights, indices, denominators)
    d_query, d_bank = topk_affinity_backward(*results, *problem, backend)
    return d_labels, d_query, d_bank


@_gradients.register_fake
def _(*arguments):  # type: ignore[no-untyped-def]
    _, labels, _, problem, _ = packed.unpack(Problem, arguments, before=3)
    return packed.empty_like(labels, problem.query, problem.bank)


_SCHEMA = f"(Tensor labels, Tensor label_frames, {packed.schema(Problem)}, str backend, bool check) -> Tensor"
_operator = torch.library.custom_op("timecycle::affinity_propagate", _run, mutates_args=(), schema=_SCHEMA)
_operator.register_fake(_fake)
_operator.register_autograd(_backward, setup_context=_setup_context)
_without_autograd = packed.without_autograd("timecycle::affinity_propagate_without_autograd", _SCHEMA, _run, _fake)


def reference(problem: Problem, labels: Tensor, label_frames: Tensor) -> Tensor:
    """The definition: the two operators' references, one after the other."""
    weights, indices, _ = topk_operator(*problem, "reference", False)
    return labels_reference(weights, indices, labels, label_frames)


backends.register("affinity_propagate", *candidates("affinity_propagate", reference))
