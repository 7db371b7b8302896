"""propagate_labels: labels of the selected keys, summed by their weights.

    out[b, n] = sum over k of  weights[b, n, k] * labels[g, m],   indices[b, n, k] = t * M + m,   g = frames[b, t]

Labels have a bank of their own because a frame's features may carry two label maps: in TimeCycle the annotated first
frame and its later prediction (spec of the release's evaluation, step 3).
"""

import torch
from torch import Tensor

from timecycle.errors import InputError


def propagate_labels(weights: Tensor, indices: Tensor, labels: Tensor, frames: Tensor) -> Tensor:
    """Soft labels of the queries.

    Args:
        weights: [B, N, K] floating point, as `topk_affinity` returns them.
        indices: [B, N, K] int64 into the slots, t * M + m; -1 contributes nothing.
        labels: [G, M, L] soft labels, dtype of the weights.
        frames: [B, T] int64: slot t of target b carries label map frames[b, t]; -1 is an empty slot.

    Returns:
        [B, N, L], dtype of the weights. Differentiable in weights and labels.

    Raises:
        InputError: shapes or dtypes do not fit together, or an index points outside the slots.
    """
    _check(weights, indices, labels, frames)
    return reference(weights, indices, labels, frames)


def _check(weights: Tensor, indices: Tensor, labels: Tensor, frames: Tensor) -> None:
    if weights.ndim != 3 or weights.shape != indices.shape:
        raise InputError(
            f"weights has shape {list(weights.shape)} and indices {list(indices.shape)}; expected [B, N, K] for both"
        )
    if labels.ndim != 3 or labels.dtype != weights.dtype:
        raise InputError(f"labels is {labels.dtype} {list(labels.shape)}; expected {weights.dtype} [G, M, L]")
    if frames.ndim != 2 or frames.shape[0] != weights.shape[0]:
        raise InputError(f"frames has shape {list(frames.shape)}; expected [{weights.shape[0]}, T], a row per target")
    if indices.dtype != torch.int64 or frames.dtype != torch.int64:
        raise InputError(f"indices is {indices.dtype} and frames {frames.dtype}; expected int64 for both")
    positions = frames.shape[1] * labels.shape[1]
    if indices.numel() and (int(indices.max()) >= positions or int(indices.min()) < -1):
        raise InputError(
            f"indices runs from {int(indices.min())} to {int(indices.max())}; expected -1 to {positions - 1}, "
            f"{frames.shape[1]} slots of {labels.shape[1]} positions"
        )


def reference(weights: Tensor, indices: Tensor, labels: Tensor, frames: Tensor) -> Tensor:
    """The definition: PyTorch's weighted embedding bag, one bag a query, over the rows of all label maps."""
    targets, queries, kept = indices.shape
    maps, positions, classes = labels.shape
    slot = indices.clamp(min=0) // positions
    label_map = frames.gather(1, slot.view(targets, -1)).view_as(indices)
    exists = (indices >= 0) & (label_map >= 0)
    rows = label_map * positions + indices % positions
    out = torch.nn.functional.embedding_bag(
        torch.where(exists, rows, 0).view(-1, kept),
        labels.reshape(maps * positions, classes),
        per_sample_weights=torch.where(exists, weights, 0.0).reshape(-1, kept),
        mode="sum",
    )
    return out.view(targets, queries, classes)
