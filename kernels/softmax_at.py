"""softmax_at in Triton, and its gradient; formulas in timecycle.ops.softmax_at.

The kernels are those of labels (propagate_labels.py): dot products of queries with gathered keys, and in the gradient a
sum of gathered keys and a sum scattered over the keys. The rest are PyTorch operators on tensors of the size of the
indices. Deterministic.
"""

from typing import Any

import torch
from torch import Tensor

from .propagate_labels import propagate_labels, row_products, scatter_rows


def softmax_at(problem: Any) -> Tensor:
    """The softmax [B, N, E] float32 of the edges, as `timecycle.ops.softmax_at` defines it.

    Features are float32, bfloat16 or float16; scale and lse are float32. Indices outside the keys give 0.
    """
    logits = _products(problem) * _factors(problem) / problem.temperature
    return torch.where(_exist(problem), (logits - problem.lse[:, :, None]).exp(), 0.0)


def softmax_at_backward(problem: Any, gradient: Tensor, out: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, scale and lse, in their dtypes, from that of `out`, which the forward pass returned."""
    query, key, scale, indices = problem.query, problem.key, problem.scale, problem.indices
    d_logits = torch.where(_exist(problem), out * gradient, 0.0)
    d_dots, own = d_logits / problem.temperature, _own(query)
    d_products = d_dots * _factors(problem)
    d_query = propagate_labels(d_products, indices, key, own, dtype=torch.float32)
    d_key = scatter_rows(query, d_products, indices, own, torch.zeros(key.shape, device=key.device))
    d_scales, ones = d_dots * _products(problem), torch.ones_like(d_dots[:, :, :1])
    d_scale = scatter_rows(ones, d_scales, indices, own, torch.zeros((*scale.shape, 1), device=scale.device))
    return d_query.to(query.dtype), d_key.to(key.dtype), d_scale.squeeze(2), -d_logits.sum(dim=2)


def _own(query: Tensor) -> Tensor:
    """The frames argument of the label kernels, [B, 1]: sample b reads its own keys."""
    return torch.arange(len(query), device=query.device)[:, None]


def _products(problem: Any) -> Tensor:
    """<query, key> of each edge, float32; 0 where there is none."""
    query, indices = problem.query, problem.indices
    out = torch.empty(indices.shape, dtype=torch.float32, device=query.device)
    return row_products(query, indices, problem.key, _own(query), out)


def _factors(problem: Any) -> Tensor:
    """The factor of each edge's key; arbitrary where there is no edge."""
    scale, indices = problem.scale, problem.indices
    return scale.gather(1, indices.clamp(0, scale.shape[1] - 1).flatten(1)).view_as(indices)


def _exist(problem: Any) -> Tensor:
    indices = problem.indices
    return (indices >= 0) & (indices < problem.key.shape[1]) & (problem.lse > -torch.inf)[:, :, None]
