"""What the operators refuse, in one sentence each, before any work.

Shapes and dtypes are known to the CPU. Values on a GPU are not: to read one, the CPU waits until the GPU has done all
its work. So what may be wrong with the values of a call is worked out where they are, and read together.
"""

import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from timecycle.errors import InputError
from timecycle.kernels.tiles import LARGEST_K
from timecycle.ops.selection import MOST_KEPT, Neighborhood

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""What features, and weights with their labels, may be."""
DTYPE_NAMES = "float32, bfloat16, float16 or float64"
LARGEST_MULTIPLICITY = 2**24
"""The largest count of a key: kernels sum them in float32, which holds no more whole numbers."""

_BYTES_OF_PLACE = 4 * 64 * 8
"""What a place of a list takes at the least: a thread of the CPU kernel works on four tiles of 64 queries."""


def check_shapes(
    query: Tensor, bank: Tensor, frames: Tensor, neighborhood: Neighborhood | None, multiplicity: Tensor | None
) -> None:
    """Refuse, before any work, what cannot fit together: InputError."""
    if query.ndim != 3 or not query.shape[2]:
        raise InputError(f"query has shape {list(query.shape)}; expected [B, N, D], D >= 1")
    if bank.ndim != 3 or bank.shape[2] != query.shape[2]:
        raise InputError(f"bank has shape {list(bank.shape)}; expected [F, M, {query.shape[2]}] like query's channels")
    rows, slots = frames.shape if frames.ndim == 2 else (-1, 0)
    if rows != query.shape[0] or not slots or frames.dtype != torch.int64:
        raise InputError(
            f"frames is {frames.dtype} {list(frames.shape)}; expected int64 [{query.shape[0]}, T], T >= 1 a target"
        )
    if bank.dtype != query.dtype or query.dtype not in DTYPES:
        raise InputError(f"query is {query.dtype} and bank {bank.dtype}; expected {DTYPE_NAMES}, one for both")
    if not query.device == bank.device == frames.device:
        raise InputError(
            f"query is on {query.device}, bank on {bank.device} and frames on {frames.device}; expected one device"
        )
    if neighborhood is not None:
        positions = neighborhood.height * neighborhood.width
        if positions != bank.shape[1] or positions != query.shape[1]:
            raise InputError(
                f"neighborhood is a grid of {neighborhood.height} x {neighborhood.width} = {positions} positions; "
                f"expected as many as there are queries ({query.shape[1]}) and keys of a frame ({bank.shape[1]})"
            )
    if multiplicity is not None and (
        multiplicity.dtype != torch.int64 or list(multiplicity.shape) not in ([slots, 2], [rows, slots, 2])
    ):
        raise InputError(
            f"multiplicity is {multiplicity.dtype} {list(multiplicity.shape)}; expected int64 [{slots}, 2] or "
            f"[{rows}, {slots}, 2]"
        )


def expand_multiplicity(multiplicity: Tensor | None, neighborhood: Neighborhood | None, frames: Tensor) -> Tensor:
    """The multiplicity [B, T, 2] that is meant by multiplicity [T, 2], [B, T, 2] or none."""
    if multiplicity is not None:
        return multiplicity.to(frames).expand(*frames.shape, 2)
    if neighborhood is None:
        return frames.new_ones((*frames.shape, 2))
    # 1 and 0, without a copy to a GPU, for which the CPU would wait.
    return torch.arange(1, -1, -1, device=frames.device).expand(*frames.shape, 2)


class Doubt(NamedTuple):
    """Something that may be wrong with a call's values."""

    wrong: Tensor
    """Whether it is: bool [], on the device of the values."""
    sentence: Callable[[], str]
    """What to say then; it may read more."""


def refuse(doubts: Iterable[Doubt]) -> None:
    """Raise InputError with the first sentence that is true. The CPU waits for a GPU once, unless one is."""
    doubts = list(doubts)
    if doubts and bool(torch.stack([doubt.wrong for doubt in doubts]).any()):
        raise InputError(next(doubt.sentence() for doubt in doubts if doubt.wrong))


def bounds_checked(check: bool, tensor: Tensor) -> bool:
    """Whether a call with that `check`, on the tensor's device, checks what would read or write out of bounds.

    On a CPU always, where it costs nothing; the kernels of a GPU look for themselves.
    """
    return check or tensor.device.type == "cpu"


def outside(numbers: Tensor, least: int, end: int) -> Tensor:
    """Whether a whole number is not in least <= number < end: bool [], not read."""
    return ((numbers < least) | (numbers >= end)).any()


def filled(slots: Tensor, frames: int) -> Tensor:
    """Which of slots [B, T] hold one of so many frames, bool; the others are empty."""
    return (slots >= 0) & (slots < frames)


def check_values(query: Tensor, bank: Tensor, frames: Tensor, multiplicity: Tensor, check: bool) -> None:
    """Refuse frames that are not in the bank, negative multiplicity and, with `check`, features that are not finite."""
    refuse(value_doubts(query, bank, frames, multiplicity, check))


def value_doubts(query: Tensor, bank: Tensor, frames: Tensor, multiplicity: Tensor, check: bool) -> list[Doubt]:
    """What check_values refuses."""
    doubts = []
    if bounds_checked(check, frames):
        doubts = [
            Doubt(
                outside(frames, -1, len(bank)),
                lambda: f"frames holds {frames.tolist()}; expected frames of the bank, -1 to {len(bank) - 1}",
            ),
            Doubt(outside(multiplicity, 0, LARGEST_MULTIPLICITY + 1), lambda: _wrong_count(multiplicity)),
        ]
    return [*doubts, _finite_doubt("query", query), _finite_doubt("bank", bank)] if check else doubts


def _wrong_count(multiplicity: Tensor) -> str:
    least, largest = int(multiplicity.min()), int(multiplicity.max())
    if least < 0:
        return f"multiplicity holds {least}; expected counts of zero or more"
    return f"multiplicity holds {largest}; expected counts of at most {LARGEST_MULTIPLICITY}"


def list_length(k: int, bank: Tensor, frames: Tensor, multiplicity: Tensor, joint: bool, ties: bool) -> int:
    """How long the lists of a call must be: k, or the places that all keys of a list can take if those are fewer.

    Refuses a list that does not fit the memory, and with `ties` more places than 32 bits count: InputError. On a GPU no
    value is read for the short lists that its kernels have, as the CPU would wait for it.
    """
    if k <= LARGEST_K and (not ties or bank.device.type == "cuda"):
        return k
    most = multiplicity.clamp(0, LARGEST_MULTIPLICITY).amax(dim=2)
    of_list = most.sum(dim=1) if joint else most.amax(dim=1)
    places = bank.shape[1] * int(of_list.max()) if len(of_list) else 0
    if ties and places > MOST_KEPT:
        raise InputError(f'the keys of a list count {places} times; expected at most {MOST_KEPT} with ties="all"')
    length = max(1, min(k, places))
    refuse_beyond_memory(length * _BYTES_OF_PLACE, bank.device, f"lists of {length} neighbors")
    return length


def refuse_beyond_memory(size: int, device: torch.device, what: str) -> None:
    """Refuse what takes so many bytes, more than the device has: InputError."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise InputError(
            f"{what} take {size / 1e9:,.0f} GB; expected no more than the memory of {memory / 1e9:,.0f} GB"
        )


def check_finite(name: str, features: Tensor) -> None:
    """Refuse features, the argument of that name, of which one is not finite: InputError with its place."""
    refuse([_finite_doubt(name, features)])


def _finite_doubt(name: str, features: Tensor) -> Doubt:
    def sentence() -> str:
        place = (~features.isfinite()).nonzero()[0].tolist()
        return f"{name} holds {float(features[tuple(place)])} at {place}; expected finite features"

    return Doubt(not_finite(features), sentence)


def not_finite(features: Tensor) -> Tensor:
    """Whether a feature is not finite: bool [], on their device and, on a GPU, not read."""
    # On a CPU a sum is the fastest reading, and passes on what is not finite. Where it overflows the extremes tell.
    if not features.numel() or (features.device.type == "cpu" and bool(features.sum().isfinite())):
        return torch.zeros((), dtype=torch.bool, device=features.device)
    least, largest = features.aminmax()
    # Zero times what is not finite is not a number, which equals nothing. (isfinite would be four kernels.)
    return least * 0 != largest * 0
