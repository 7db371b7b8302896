"""What topk_affinity and affinity_propagate refuse, in one sentence each, before any work."""

import torch
from torch import Tensor

from timecycle.errors import InputError
from timecycle.ops.selection import Region


def check_shapes(query: Tensor, bank: Tensor, frames: Tensor, region: Region | None, copies: Tensor | None) -> None:
    """Refuse, before any work, what cannot fit together: InputError."""
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
    if region is not None:
        positions = region.height * region.width
        if positions != bank.shape[1] or positions != query.shape[1]:
            raise InputError(
                f"region is a grid of {region.height} x {region.width} = {positions} positions; expected as many as "
                f"there are queries ({query.shape[1]}) and keys of a frame ({bank.shape[1]})"
            )
    if copies is not None and (copies.dtype != torch.int64 or list(copies.shape) not in ([slots, 2], [rows, slots, 2])):
        raise InputError(
            f"copies is {copies.dtype} {list(copies.shape)}; expected int64 [{slots}, 2] or [{rows}, {slots}, 2]"
        )


def expand_copies(copies: Tensor | None, region: Region | None, frames: Tensor) -> Tensor:
    """The copies [B, T, 2] that are meant by copies [T, 2], [B, T, 2] or none."""
    if copies is None:
        copies = torch.tensor([1, 1 if region is None else 0], device=frames.device)
    return copies.to(frames).expand(*frames.shape, 2)


def check_values(query: Tensor, bank: Tensor, frames: Tensor, copies: Tensor, check: bool) -> None:
    """Refuse frames that are not in the bank, negative copies and, with `check`, features that are not finite."""
    if frames.numel() and (int(frames.max()) >= bank.shape[0] or int(frames.min()) < -1):
        raise InputError(f"frames holds {frames.tolist()}; expected frames of the bank, -1 to {bank.shape[0] - 1}")
    if copies.numel() and int(copies.min()) < 0:
        raise InputError(f"copies holds {int(copies.min())}; expected counts of zero or more")
    if check:
        check_finite("query", query)
        check_finite("bank", bank)


def check_finite(name: str, features: Tensor) -> None:
    """Refuse features, the argument of that name, of which one is not finite: InputError with its place."""
    # A sum is the fastest reading, and passes on what is not finite. Where it overflows itself the extremes tell.
    if not features.numel() or bool(features.sum().isfinite()):
        return
    if not all(bool(extreme.isfinite()) for extreme in features.aminmax()):
        place = (~features.isfinite()).nonzero()[0].tolist()
        raise InputError(f"{name} holds {float(features[tuple(place)])} at {place}; expected finite features")
