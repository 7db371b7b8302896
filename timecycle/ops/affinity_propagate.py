"""affinity_propagate: from features and labels to labels, for callers who need no indices.

    out[b, n] = sum over the kept keys of  weight * labels[g, m],   g = label_frames[b, t]

with the kept keys and weights of topk_affinity, which defines them, and the sum of propagate_labels. The CPU kernel
adds a query's labels up as soon as its list is complete, so that neither weights nor indices are stored, and rows that
keep more than others (ties="all") need no padding.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from timecycle.errors import InputError
from timecycle.ops import deprecated
from timecycle.ops.backends import (
    CUDA_MISSING,
    NATIVE,
    NATIVE_MISSING,
    TRITON_MISSING,
    Backend,
    choose,
    register,
    run_kernels,
)
from timecycle.ops.checks import bounds_checked, check_shapes, expand_multiplicity, list_length, refuse, value_doubts
from timecycle.ops.propagate_labels import check_labels, label_frame_doubt, propagate_labels_backward
from timecycle.ops.propagate_labels import reference as labels_reference
from timecycle.ops.selection import Neighborhood, Select
from timecycle.ops.topk_affinity import operator as topk_operator
from timecycle.ops.topk_affinity import (
    run_cuda,
    slower_than_triton,
    why_not_cpu,
    why_not_cuda_here,
    why_not_triton_here,
    wide_dtype,
)
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
    """Soft labels [B, N, L] of the queries, float32 (float64 for float64 features).

    Args and errors are those of `topk_affinity` (query to frames, select to check) and `propagate_labels` (labels
    [G, M, L] of any floating dtype, and label_frames [B, T], which is its `frames`). `check` is for both: on a GPU it
    makes the CPU wait once, and without it a frame outside the bank, or a label map outside the labels, is none.
    Differentiable in query, bank and labels.
    """
    check_shapes(query, bank, frames, neighborhood, multiplicity)
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
    width, reach = (neighborhood.width, neighborhood.half_widths()) if neighborhood is not None else (0, [])
    return _operator(
        query,
        bank,
        frames,
        labels,
        label_frames,
        expand_multiplicity(multiplicity, neighborhood, frames),
        select.k,
        select.temperature,
        select.scope == "joint",
        select.softmax_over == "all",
        select.ties == "all",
        width,
        reach,
        backend or "",
        check,
    )


@torch.library.custom_op("timecycle::affinity_propagate", mutates_args=())
def _operator(
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
    backend: str,
    check: bool,
) -> Tensor:
    doubts = value_doubts(query, bank, frames, multiplicity, check)
    if bounds_checked(check, query):
        doubts.append(label_frame_doubt(labels, label_frames, "label_frames"))
    refuse(doubts)
    k = list_length(k, bank, frames, multiplicity, joint, ties)
    arguments = (
        query,
        bank,
        frames,
        labels,
        label_frames,
        multiplicity,
        k,
        temperature,
        joint,
        softmax_over_all,
        ties,
        width,
        reach,
    )
    return choose("affinity_propagate", backend or None, *arguments).run(*arguments)


@_operator.register_fake
def _(query, bank, frames, labels, *rest):  # type: ignore[no-untyped-def]
    return labels.new_empty((*query.shape[:2], labels.shape[2]))


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    query, bank, frames, labels, label_frames, multiplicity, *ctx.rest = inputs
    ctx.save_for_backward(query, bank, frames, labels, label_frames, multiplicity)


def _backward(ctx, gradient):  # type: ignore[no-untyped-def]
    d_query, d_bank, d_labels = _gradients(gradient, *ctx.saved_tensors, *ctx.rest[:-1])
    return d_query, d_bank, None, d_labels, *(None,) * 11


@torch.library.custom_op("timecycle::affinity_propagate_backward", mutates_args=())
def _gradients(
    gradient: Tensor,
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, bank and labels. Weights and indices are made again: the forward spares storing them."""
    features, rest = (query, bank, frames, multiplicity), (temperature, joint, softmax_over_all)
    k = list_length(k, bank, frames, multiplicity, joint, ties)
    weights, indices, denominators = topk_operator(*features, k, *rest, ties, width, reach, backend, False)
    d_weights, d_labels = propagate_labels_backward(gradient, weights, indices, labels, label_frames)
    d_query, d_bank = topk_affinity_backward(
        d_weights, weights, indices, denominators, *features, *rest, width, reach, backend
    )
    return d_query, d_bank, d_labels


@_gradients.register_fake
def _(gradient, query, bank, frames, labels, *rest):  # type: ignore[no-untyped-def]
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, bank, labels))


_operator.register_autograd(_backward, setup_context=_setup_context)


def reference(
    query: Tensor,
    bank: Tensor,
    frames: Tensor,
    labels: Tensor,
    label_frames: Tensor,
    multiplicity: Tensor,
    *select: object,
) -> Tensor:
    """The definition: the two operators' references, one after the other."""
    weights, indices, _ = topk_operator(query, bank, frames, multiplicity, *select, "reference", False)
    return labels_reference(weights, indices, labels, label_frames)


def _without_labels(of_topk: Callable[..., str | None]) -> Callable[..., str | None]:
    """What topk_affinity answers of a call, asked of the same call with labels."""

    def answer(query: Tensor, bank: Tensor, frames: Tensor, labels: Tensor, maps: Tensor, *rest: Any) -> str | None:
        return of_topk(query, bank, frames, *rest)

    return answer


def _run_cpu(*arguments: object) -> Tensor:
    assert NATIVE is not None
    return NATIVE.affinity_propagate(*(x.contiguous() if isinstance(x, Tensor) else x for x in arguments))


register(
    "affinity_propagate",
    Backend(
        "cuda",
        CUDA_MISSING,
        _without_labels(why_not_cuda_here),
        run_cuda("affinity_propagate"),
        device=None,  # Triton serves as well
        unless_asked=_without_labels(slower_than_triton),
    ),
    Backend(
        "triton",
        TRITON_MISSING,
        _without_labels(why_not_triton_here),
        run_kernels("affinity_propagate", "affinity_propagate"),
        "cuda",
    ),
    Backend("cpu", NATIVE_MISSING, why_not_cpu, _run_cpu),
    Backend("reference", None, lambda *_: None, reference),
)
