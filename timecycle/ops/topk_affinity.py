"""topk_affinity: from features to the few weights and indices that carry labels.

For a query q of target frame b, and context slot t that holds frame f = frames[b, t] of the bank:

    logit[t, m] = <query[b, q], bank[f, m]> / temperature

`select.scope` says where the k largest logits are looked for: in every slot ("frame", K = T * k) or over all slots
together ("joint", K = k). `select.normalise` says what their weights are: their share of the softmax over every
position of the slot (of all slots for "joint") as it is ("all"), or the softmax over the kept ones alone ("kept"). For
"frame" the weights are divided by the number of filled slots, so that they are the mean over the context frames.

Source: TimeCycle (Wang, Jabri, Efros, CVPR 2019), section 4.2, is scope="frame", normalise="all", k=5,
temperature=512 ** -0.5; its successors' protocols are scope="joint", normalise="kept".
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from timecycle.errors import InputError
from timecycle.ops.backends import LIBRARY, NATIVE_MISSING, Backend, choose

LIBRARY.define(
    "topk_affinity(Tensor query, Tensor bank, Tensor frames, int k, float temperature, bool joint, bool all)"
    " -> (Tensor, Tensor)"
)


@dataclass(frozen=True)
class Select:
    """Which keys are kept for a query and what they weigh. Raises InputError for values that mean nothing."""

    k: int
    """Neighbours kept, in each slot (scope "frame") or over all slots (scope "joint")."""
    temperature: float
    """The logit is the dot product divided by it."""
    scope: Literal["frame", "joint"] = "joint"
    normalise: Literal["all", "kept"] = "kept"

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"Select.k is {self.k}; expected at least one neighbour")
        if not self.temperature > 0:
            raise InputError(f"Select.temperature is {self.temperature}; expected a positive number")
        if self.scope not in ("frame", "joint"):
            raise InputError(f"Select.scope is {self.scope!r}; expected 'frame' or 'joint'")
        if self.normalise not in ("all", "kept"):
            raise InputError(f"Select.normalise is {self.normalise!r}; expected 'all' or 'kept'")


def topk_affinity(
    query: Tensor, bank: Tensor, frames: Tensor, select: Select, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Weights and indices of the keys most similar to each query.

    Args:
        query: [B, N, D] features of B target frames; float32, bfloat16, float16 or float64.
        bank: [F, M, D] features of the frames that may serve as context, same dtype and device.
        frames: [B, T] int64: slot t of target b holds frame frames[b, t] of the bank; -1 is an empty slot.
        select: what is kept and how it is weighted.
        backend: 'cpu' or 'reference'; the first that can run the call if not given.

    Returns:
        weights [B, N, K] (float32; float64 for float64 features) and indices [B, N, K] (int64) into the slots,
        t * M + m, per slot ("frame") or over all ("joint") by falling logit, equal logits by rising index. Where
        fewer than k positions exist the rest is index -1 with weight 0.

    Raises:
        InputError: shapes, dtypes or devices do not fit together, `frames` points outside the bank, or the backend that
            was asked for cannot run the call.
    """
    _check(query, bank, frames)
    return choose("topk_affinity", BACKENDS, backend, query, bank, frames, select).run(query, bank, frames, select)


def _check(query: Tensor, bank: Tensor, frames: Tensor) -> None:
    if query.ndim != 3:
        raise InputError(f"query has shape {list(query.shape)}; expected [B, N, D]")
    if bank.ndim != 3 or bank.shape[2] != query.shape[2]:
        raise InputError(f"bank has shape {list(bank.shape)}; expected [F, M, {query.shape[2]}] like query's channels")
    rows, slots = frames.shape if frames.ndim == 2 else (-1, 0)
    if rows != query.shape[0] or not slots or frames.dtype != torch.int64:
        raise InputError(
            f"frames is {frames.dtype} {list(frames.shape)}; expected int64 [{query.shape[0]}, T], T >= 1 a target"
        )
    if bank.dtype != query.dtype or not query.dtype.is_floating_point:
        raise InputError(f"query is {query.dtype} and bank {bank.dtype}; expected one floating-point dtype for both")
    if not query.device == bank.device == frames.device:
        raise InputError(
            f"query is on {query.device}, bank on {bank.device} and frames on {frames.device}; expected one device"
        )
    if frames.numel() and (int(frames.max()) >= bank.shape[0] or int(frames.min()) < -1):
        raise InputError(f"frames holds {frames.tolist()}; expected frames of the bank, -1 to {bank.shape[0] - 1}")


def reference(query: Tensor, bank: Tensor, frames: Tensor, select: Select) -> tuple[Tensor, Tensor]:
    """The definition, in plain PyTorch: one target at a time, one slot's logits at a time for "frame"."""
    slots = frames.shape[1]
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    rows: list[tuple[Tensor, Tensor]] = []
    for target, context in zip(query.to(wide), frames.tolist(), strict=True):
        if select.scope == "frame":
            filled = max(1, sum(frame >= 0 for frame in context))
            parts = [_slot(target, bank, frame, slot, select) for slot, frame in enumerate(context)]
            weights = torch.cat([weight for weight, _ in parts], dim=1) / filled
            indices = torch.cat([index for _, index in parts], dim=1)
        else:
            logits = torch.cat([_logits(target, bank, frame, select) for frame in context], dim=1)
            weights, indices = _keep(logits, select)
        rows.append((weights, indices))
    if not rows:
        kept = select.k * (slots if select.scope == "frame" else 1)
        return query.new_empty((0, query.shape[1], kept), dtype=wide), frames.new_empty((0, query.shape[1], kept))
    return torch.stack([weights for weights, _ in rows]), torch.stack([indices for _, indices in rows])


def _slot(query: Tensor, bank: Tensor, frame: int, slot: int, select: Select) -> tuple[Tensor, Tensor]:
    """Kept weights and indices of one slot: query [N, D] -> [N, k], [N, k]."""
    weights, indices = _keep(_logits(query, bank, frame, select), select)
    return weights, torch.where(indices >= 0, indices + slot * bank.shape[1], indices)


def _logits(query: Tensor, bank: Tensor, frame: int, select: Select) -> Tensor:
    """Logits of one slot, [N, M]; an empty slot is -inf throughout."""
    if frame < 0:
        return query.new_full((query.shape[0], bank.shape[1]), -torch.inf)
    return query @ bank[frame].to(query.dtype).T / select.temperature


def _keep(logits: Tensor, select: Select) -> tuple[Tensor, Tensor]:
    """The k largest of each row of logits [N, P] and their weights; -inf marks positions that do not exist."""
    values, indices = exact_topk(logits, min(select.k, logits.shape[1]))
    exists = values > -torch.inf
    if select.normalise == "all":
        weights = (values - logits.logsumexp(dim=1, keepdim=True)).exp()
    else:
        weights = values.softmax(dim=1)
    # A row without any position is -inf - -inf above: not a number, and masked here.
    weights = torch.where(exists, weights, 0.0)
    indices = torch.where(exists, indices, -1)
    missing = select.k - values.shape[1]
    if missing:
        weights = torch.nn.functional.pad(weights, (0, missing))
        indices = torch.nn.functional.pad(indices, (0, missing), value=-1)
    return weights, indices


def exact_topk(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`torch.topk` of the rows of values [N, P] with a fixed order: larger value first, then lower index.

    torch.topk leaves open which of several equal values it returns. Rows where that matters, because the k-th and the
    next value are equal, are few; only they are sorted in full.
    """
    more = min(k + 1, values.shape[1])
    top, indices = values.topk(more, dim=1)
    if more > k:
        tied = (top[:, k - 1] == top[:, k]).nonzero().squeeze(1)
        top, indices = top[:, :k].contiguous(), indices[:, :k].contiguous()
        if len(tied):
            order = values[tied].sort(dim=1, descending=True, stable=True)
            top = top.index_copy(0, tied, order.values[:, :k])
            indices[tied] = order.indices[:, :k]
    by_index = indices.sort(dim=1)
    by_value = top.gather(1, by_index.indices).sort(dim=1, descending=True, stable=True)
    return by_value.values, by_index.values.gather(1, by_value.indices)


def _why_not_cpu(query: Tensor, bank: Tensor, frames: Tensor, select: Select) -> str | None:
    if NATIVE_MISSING:
        return NATIVE_MISSING
    if query.device.type != "cpu":
        return f"the features are on {query.device}"
    if query.dtype == torch.float64:
        return "it has no float64 kernel"
    if torch.is_grad_enabled() and (query.requires_grad or bank.requires_grad):
        return "it has no gradient"
    return None


def _run_cpu(query: Tensor, bank: Tensor, frames: Tensor, select: Select) -> tuple[Tensor, Tensor]:
    return torch.ops.timecycle.topk_affinity(
        query, bank, frames, select.k, select.temperature, select.scope == "joint", select.normalise == "all"
    )


BACKENDS = (Backend("cpu", _why_not_cpu, _run_cpu), Backend("reference", lambda *_: None, reference))
