"""propagate_labels: labels of the selected keys, summed by their weights.

    out[b, n] = sum over k of  weights[b, n, k] * labels[g, m]
                with indices[b, n, k] = t * M + m  and  g = frames[b, t]

Labels have a bank of their own because a frame's features may carry two label maps: in TimeCycle the annotated first
frame and its later prediction.
"""

import torch
from torch import Tensor

from timecycle.errors import InputError
from timecycle.ops import backends
from timecycle.ops.checks import DTYPE_NAMES, DTYPES, Doubt, bounds_checked, filled, outside, refuse, refuse_tangents


def propagate_labels(weights: Tensor, indices: Tensor, labels: Tensor, frames: Tensor, *, check: bool = True) -> Tensor:
    """Soft labels of the queries, from the weights and indices of their keys.

    Args:
        weights: [B, N, K] floating point, as `topk_affinity` returns them.
        indices: [B, N, K] int64 into the slots, t * M + m; -1 contributes nothing.
        labels: [G, M, L] soft labels, dtype of the weights.
        frames: [B, T] int64: slot t of target b carries label map frames[b, t]; -1 is an empty slot.
        check: refuse indices outside the slots and frames outside the labels, which on a CPU are always refused. On a
            GPU the CPU waits for it once; without it a call reads nothing back, and what points outside contributes
            nothing.

    Returns:
        [B, N, L], dtype of the weights. Differentiable in weights and labels.

    Raises:
        InputError: shapes or dtypes do not fit together, or an index points outside the slots.
    """
    check_affinity(weights, indices)
    check_labels(labels, frames, len(weights), weights.dtype, "frames")
    refuse_tangents(weights, labels)
    return _operator(weights, indices, labels, frames, check)


def check_affinity(weights: Tensor, indices: Tensor) -> None:
    """Refuse weights and indices that are not of one shape [B, N, K]."""
    if weights.ndim != 3 or weights.shape != indices.shape:
        raise InputError(
            f"weights has shape {list(weights.shape)} and indices {list(indices.shape)}; expected [B, N, K] for both"
        )
    if weights.dtype not in DTYPES:
        raise InputError(f"weights is {weights.dtype}; expected {DTYPE_NAMES}")
    if indices.dtype != torch.int64:
        raise InputError(f"indices is {indices.dtype}; expected int64")


def index_doubt(indices: Tensor, slots: int, positions: int) -> Doubt:
    """Whether there are indices outside so many slots of so many positions."""
    end = slots * positions
    return Doubt(
        outside(indices, -1, end),
        lambda: (
            f"indices runs from {int(indices.min())} to {int(indices.max())}; expected -1 to {end - 1}, "
            f"{slots} slots of {positions} positions"
        ),
    )


def check_labels(labels: Tensor, frames: Tensor, targets: int, dtype: torch.dtype, name: str) -> None:
    """Refuse labels, and slots to label maps (the argument called `name`), that do not fit `targets` targets."""
    if labels.ndim != 3 or labels.dtype != dtype:
        raise InputError(f"labels is {labels.dtype} {list(labels.shape)}; expected {dtype} [G, M, L]")
    if frames.ndim != 2 or frames.shape[0] != targets or frames.dtype != torch.int64:
        raise InputError(
            f"{name} is {frames.dtype} {list(frames.shape)}; expected int64 [{targets}, T], a row per target"
        )


def label_frame_doubt(labels: Tensor, frames: Tensor, name: str) -> Doubt:
    """Whether slots carry label maps which are not there."""
    return Doubt(
        outside(frames, -1, len(labels)),
        lambda: f"{name} holds {frames.tolist()}; expected label maps, -1 to {len(labels) - 1}",
    )


@torch.library.custom_op("timecycle::propagate_labels", mutates_args=())
def _operator(weights: Tensor, indices: Tensor, labels: Tensor, frames: Tensor, check: bool = True) -> Tensor:
    """The operator as PyTorch sees it."""
    if bounds_checked(check, weights):
        refuse([index_doubt(indices, frames.shape[1], labels.shape[1]), label_frame_doubt(labels, frames, "frames")])
    return backends.choose("propagate_labels", None, weights).run(weights, indices, labels, frames)


@_operator.register_fake
def _(weights, indices, labels, frames, check=True):  # type: ignore[no-untyped-def]
    return weights.new_empty((*weights.shape[:2], labels.shape[2]))


def reference(weights: Tensor, indices: Tensor, labels: Tensor, frames: Tensor) -> Tensor:
    """The sum by PyTorch's weighted embedding bag, one bag a query, over all rows of labels."""
    if not (indices.numel() and labels.numel() and frames.numel()):  # embedding_bag takes no empty bags or rows
        return weights.new_zeros((*weights.shape[:2], labels.shape[2]))
    table, rows = label_rows(indices, frames, labels)
    weights = weights.where(rows < len(table) - 1, 0.0)
    out = torch.nn.functional.embedding_bag(
        rows.flatten(0, 1), table, per_sample_weights=weights.flatten(0, 1), mode="sum"
    )
    return out.view(*weights.shape[:2], labels.shape[2])


def label_rows(indices: Tensor, frames: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The bank as rows [G * M + 1, L], and which of them indices [B, N, K] mean: the last, of zeros, is none."""
    maps, positions, length = labels.shape
    is_index = (indices >= 0) & (indices < frames.shape[1] * positions)
    label_map = frames.gather(1, (indices.where(is_index, 0) // positions).flatten(1)).view_as(indices)
    exists = is_index & filled(label_map, maps)
    table = torch.cat([labels.flatten(0, 1), labels.new_zeros(1, length)])
    return table, torch.where(exists, label_map * positions + indices % positions, maps * positions)


@torch.library.custom_op("timecycle::propagate_labels_backward", mutates_args=())
def propagate_labels_backward(
    gradient: Tensor, weights: Tensor, indices: Tensor, labels: Tensor, frames: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of weights, <gradient, label of the key>, and of labels, gradient scattered by the weights."""
    return backends.choose("propagate_labels_backward", None, gradient).run(gradient, weights, indices, labels, frames)


def reference_backward(
    gradient: Tensor, weights: Tensor, indices: Tensor, labels: Tensor, frames: Tensor
) -> tuple[Tensor, Tensor]:
    """The same, one neighbor at a time: [B, N, K, L] would dwarf everything else."""
    if not (indices.numel() and labels.numel() and frames.numel()):
        return torch.zeros_like(weights), torch.zeros_like(labels)
    table, rows = label_rows(indices, frames, labels)
    d_weights, d_table = torch.empty_like(weights), torch.zeros_like(table)
    for k in range(indices.shape[2]):
        d_weights[:, :, k] = (table[rows[:, :, k]] * gradient).sum(dim=2)
        share = gradient * weights[:, :, k, None]
        d_table.index_add_(0, rows[:, :, k].flatten(), share.flatten(0, 1))
    return d_weights, d_table[:-1].reshape(labels.shape)


@propagate_labels_backward.register_fake
def _(gradient, weights, indices, labels, frames):  # type: ignore[no-untyped-def]
    return torch.empty_like(weights), labels.new_empty(labels.shape)


def _setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs[:4])


def _backward(ctx, gradient):  # type: ignore[no-untyped-def]
    d_weights, d_labels = propagate_labels_backward(gradient, *ctx.saved_tensors)
    return d_weights, None, d_labels, None, None


_operator.register_autograd(_backward, setup_context=_setup_context)

for _name, _plain in (("propagate_labels", reference), ("propagate_labels_backward", reference_backward)):
    _triton = backends.triton("propagate_labels", _name, lambda tensor, *_: backends.why_not_triton(tensor))
    backends.register(_name, _triton, backends.reference(_plain))
