"""Random arguments of the operators: sizes, tensors of unusual memory layouts, selections; and a comparison.

Features are small whole numbers, so that every dot product is exact in every dtype: the selected indices must be equal.
"""

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.conftest import FORCED
from timecycle.errors import InputError
from timecycle.ops import Neighborhood, Select, propagate_sequence, topk_affinity
from timecycle.ops.backends import INTERPRETED

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WRONG_DTYPES = (torch.int32, torch.bool, torch.float8_e4m3fn, torch.complex64, *DTYPES)
LARGEST = 70
LARGE_K = (1000, 10**6, 2**31 - 1, 2**31, 2**59, 2**62, 2**63 - 1, 2**63, 2**100)
NOT_FINITE = (float("nan"), float("inf"), -float("inf"))
EXTREME = (1e-30, 1e-6, 2.0**126, 0.0, -1.0, *NOT_FINITE, 1e300, 1e-300, 1e39, 1e-39, 5e-324, 2.0**127, 2.0**-127)
"""Temperatures, of which most are refused."""


def generator(rng: random.Random) -> torch.Generator:
    """A generator of tensors that follows from rng."""
    return torch.Generator().manual_seed(rng.getrandbits(31))


def size(rng: random.Random, least: int = 0) -> int:
    """Mostly 1 to 8, rarely 0, up to LARGEST."""
    if rng.random() < 0.02:
        return least
    return rng.randint(max(1, least), 8) if rng.random() < 0.8 else rng.randint(max(1, least), LARGEST)


def strange(rng: random.Random, tensor: Tensor) -> Tensor:
    """The same values with other strides or an offset."""
    kind = rng.random()
    if kind < 0.6 or not tensor.ndim:
        return tensor
    if kind < 0.75:
        a, b = rng.randrange(tensor.ndim), rng.randrange(tensor.ndim)
        return tensor.transpose(a, b).contiguous().transpose(a, b)
    if kind < 0.9:
        dim = rng.randrange(tensor.ndim)
        room = tensor.new_zeros([n * 2 + 3 if d == dim else n for d, n in enumerate(tensor.shape)])
        part = room.narrow(dim, 1, tensor.shape[dim] * 2)[(slice(None),) * dim + (slice(None, None, 2),)]
        part.copy_(tensor)
        return part
    room = tensor.new_zeros(tensor.numel() + 1)
    room[1:] = tensor.flatten()
    return room[1:].view(tensor.shape)


def whole(rng: random.Random, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Whole numbers from -2 to 2; rarely expanded along a dimension."""
    shape = list(shape)
    dim = rng.randrange(len(shape))
    one = rng.random() < 0.05 and shape[dim] > 0
    drawn = [1 if one and d == dim else n for d, n in enumerate(shape)]
    numbers = torch.randint(-2, 3, drawn, generator=generator(rng)).to(dtype)
    return numbers.expand(shape) if one else strange(rng, numbers)


def slots(rng: random.Random, targets: int, length: int, frames: int) -> Tensor:
    """Slots [targets, length] of indices below `frames`: some empty (-1), sometimes all, rarely one out of range."""
    least = -1 if rng.random() < 0.5 or not frames else 0
    end = 0 if rng.random() < 0.05 else frames
    found = torch.randint(least, max(end, least + 1), (targets, length), generator=generator(rng))
    if found.numel() and rng.random() < 0.03:
        found.view(-1)[rng.randrange(found.numel())] = rng.choice([frames, -2, 2**62, -(2**63)])
    return strange(rng, found)


def temperature(rng: random.Random) -> float:
    """Mostly one with which logits stay finite."""
    return rng.choice(EXTREME) if rng.random() < 0.04 else rng.choice([0.07, 0.5, 1.0, 4.0, 512**-0.5, 1e6])


class Affinity(NamedTuple):
    """The arguments of topk_affinity."""

    query: Tensor
    bank: Tensor
    frames: Tensor
    select: Select
    options: dict[str, Any]


def grid(rng: random.Random) -> Neighborhood:
    """A neighborhood on a grid of at most LARGEST positions."""
    height = rng.randint(1, 8)
    width = rng.randint(1, LARGEST // height if rng.random() < 0.2 else 8)
    radius = rng.choice([0, 0.5, 1, 1.5, 2, 3, 5, 100, 1e200, float("inf"), float("nan"), -1][: rng.choice([8, 8, 12])])
    return Neighborhood(height, width, radius, rng.choice(["circle<", "circle<=", "square<="]))


def counts(rng: random.Random, targets: int, length: int, few: bool) -> Tensor | None:
    """Multiplicity [T, 2] or [B, T, 2], or None; with `few` no counts that make lists long."""
    kind = rng.random()
    if kind < 0.5:
        return None
    shape = (length, 2) if kind < 0.75 else (targets, length, 2)
    multiplicity = torch.randint(0, 5, shape, generator=generator(rng))
    if multiplicity.numel() and rng.random() < 0.08:
        values = [-1, 2**24 + 1, 2**62, *([] if few else [2**24])]
        multiplicity.view(-1)[rng.randrange(multiplicity.numel())] = rng.choice(values)
    return strange(rng, multiplicity)


def selection(rng: random.Random, rows: int) -> Select:
    """A selection whose lists, for so many rows, fit into memory."""
    scope, softmax_over = rng.choice(["frame", "joint"]), rng.choice(["all", "topk"])
    ties = rng.choice(["exact", "all"])
    k = rng.choice([1, 1, 2, 3, 5, 8, 20, 100, 129])
    if rng.random() < 0.15:
        k = rng.choice([0, -1, *LARGE_K])
        if ties == "exact" and k < 2**31 and k * rows > 200_000:
            k = max(1, 200_000 // rows)
    return Select(k, temperature(rng), scope, softmax_over, ties)


def affinity(rng: random.Random, kept: bool = True) -> Affinity:
    """Arguments of topk_affinity; without `kept` of an operator that returns no lists."""
    neighborhood = grid(rng) if rng.random() < 0.3 else None
    positions = neighborhood.height * neighborhood.width if neighborhood else None
    targets, length = size(rng) % 5, size(rng, 1) % 7 or rng.choice([0, 1, 2, 3])
    queries, keys = (size(rng) if positions is None else positions for _ in range(2))
    banked, channels, dtype = size(rng) % 6, size(rng), rng.choice(DTYPES)
    select = selection(rng, targets * queries * length if kept else 0)
    query = whole(rng, (targets, queries, channels), dtype)
    bank = whole(rng, (banked, keys, channels), dtype)
    if rng.random() < 0.1 and queries == keys:
        bank = query
    options = {
        "neighborhood": neighborhood,
        "multiplicity": counts(rng, targets, length, select.ties == "all" or select.k > 100),
    }
    return Affinity(query, bank, slots(rng, targets, length, len(bank)), select, options)


def spoilt(rng: random.Random, tensors: dict[str, Any]) -> dict[str, Any]:
    """The arguments, rarely with one tensor of a wrong shape, dtype or value."""
    names = [name for name, value in tensors.items() if isinstance(value, Tensor)]
    if rng.random() > 0.07 or not names:
        return tensors
    name = rng.choice(names)
    tensor = tensors[name]
    changes: list[Callable[[], Tensor]] = [
        lambda: tensor.to(rng.choice(WRONG_DTYPES)),
        lambda: tensor[0] if len(tensor) else tensor.flatten(),
        lambda: tensor[:, : max(0, tensor.shape[1] - 1)] if tensor.ndim > 1 else tensor,
        lambda: torch.cat([tensor, tensor[:1]]),
        lambda: tensor[:0],
        lambda: tensor[..., :0],
        lambda: tensor[None],
        lambda: tensor.transpose(0, -1),
        lambda: with_value(rng, tensor, NOT_FINITE),
    ]
    return tensors | {name: rng.choice(changes)()}


def with_value(rng: random.Random, tensor: Tensor, values: Sequence[float]) -> Tensor:
    """A copy of a floating point tensor with one element replaced by one of the values."""
    if not tensor.numel() or not tensor.is_floating_point():
        return tensor
    tensor = tensor.clone(memory_format=torch.contiguous_format)
    tensor.view(-1)[rng.randrange(tensor.numel())] = rng.choice(values)
    return tensor


def backends(function: Callable[..., Any], dtype: torch.dtype) -> list[str | None]:
    """Backends compared with the reference: the CPU kernels where they support the dtype, Triton's if interpreted."""
    if dtype == torch.float64 or (function is propagate_sequence and dtype != torch.float32):
        return [None]
    found: list[str | None] = ["cpu", "triton"] if INTERPRETED and function is not propagate_sequence else ["cpu"]
    # All variants of topk_affinity, of which a call takes the one that is fastest on the chip.
    return [*found, *(backend.name for backend in FORCED)] if function is topk_affinity else found


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill uninitialized memory with NaN, so that elements that are not written show."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the InputError that it raises."""
    try:
        return call()
    except InputError as error:
        return error


def compare(ours: Any, exact: Any, tolerance: float = 1e-5) -> None:
    """Both refused with the same sentence, or equal: values up to `tolerance` of the largest, indices exactly."""
    if isinstance(exact, InputError) or isinstance(ours, InputError):
        assert str(ours) == str(exact), f"one says {str(ours)[:150]!r}, the reference {str(exact)[:150]!r}"
        raise exact
    for one, other in zip(ours, exact, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), (one.dtype, one.shape, other.dtype, other.shape)
        if not one.is_floating_point():
            assert torch.equal(one, other), "other indices are kept"
            continue
        if tolerance == float("inf"):
            continue
        one, other = one.double(), other.double()
        assert torch.equal(one.isfinite(), other.isfinite()), "not finite in other places"
        one, other = one.nan_to_num(0, 0, 0), other.nan_to_num(0, 0, 0)
        error = (one - other).abs().max().item() if one.numel() else 0.0
        allowed = tolerance * max(1.0, other.abs().max().item() if one.numel() else 0.0)
        assert error <= allowed, f"an error of {error:.3g} where {allowed:.3g} is allowed"
