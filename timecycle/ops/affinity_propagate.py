"""affinity_propagate: topk_affinity and propagate_labels in one call, for callers who need no indices."""

from torch import Tensor

from timecycle.ops.propagate_labels import propagate_labels
from timecycle.ops.selection import Region, Select
from timecycle.ops.topk_affinity import topk_affinity


def affinity_propagate(
    query: Tensor,
    bank: Tensor,
    frames: Tensor,
    labels: Tensor,
    label_frames: Tensor,
    select: Select,
    *,
    region: Region | None = None,
    copies: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Soft labels [B, N, L] of the queries, float32 (float64 for float64 features).

    Args and errors are those of `topk_affinity` (query to frames, select to backend) and `propagate_labels` (labels
    [G, M, L], and label_frames [B, T], which is its `frames`). Differentiable in query, bank and labels.
    """
    weights, indices = topk_affinity(query, bank, frames, select, region=region, copies=copies, backend=backend)
    return propagate_labels(weights, indices, labels.to(weights.dtype), label_frames)
