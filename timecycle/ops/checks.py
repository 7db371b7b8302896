"""Checks of the operators' arguments, made before any work; each failure is one sentence.

Shapes and dtypes are known to the CPU. Reading a value from a GPU synchronizes with it. So all checks of values are
computed on the tensors' device, and their results are read together.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from timecycle.errors import InputError

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Dtypes of features, and of weights and their labels."""
DTYPE_NAMES = "float32, bfloat16, float16 or float64"


def wide_dtype(features: Tensor) -> torch.dtype:
    """Dtype of sums and results: float32, and float64 for float64."""
    return torch.float64 if features.dtype == torch.float64 else torch.float32


class Doubt(NamedTuple):
    """A check of a call's values."""

    wrong: Tensor
    """Whether it fails: bool [], on the device of the values."""
    sentence: Callable[[], str]
    """The error message if it fails; it may read more values."""


def refuse(doubts: Iterable[Doubt]) -> None:
    """Raise InputError with the message of the first check that fails. Synchronizes with a GPU once if none does."""
    doubts = list(doubts)
    if doubts and bool(torch.stack([doubt.wrong for doubt in doubts]).any()):
        raise InputError(next(doubt.sentence() for doubt in doubts if doubt.wrong))


def refuse_tangents(*inputs: Tensor) -> None:
    """Raise InputError in forward-mode differentiation, for which PyTorch would take the operators' derivative as 0."""
    if not torch.compiler.is_compiling() and any(unpack_dual(x).tangent is not None for x in inputs):
        raise InputError(
            "an input has a tangent, and forward-mode differentiation is not implemented; expected reverse mode, as by "
            "torch.autograd.grad"
        )


def bounds_checked(check: bool, tensor: Tensor) -> bool:
    """Whether a call with that `check`, on the tensor's device, checks what would read or write out of bounds.

    On a CPU always, where it costs nothing; the kernels of a GPU look for themselves.
    """
    return check or tensor.device.type == "cpu"


def outside(numbers: Tensor, least: int, end: int) -> Tensor:
    """Whether any integer is outside least <= number < end: bool [], not read back."""
    return ((numbers < least) | (numbers >= end)).any()


def filled(slots: Tensor, frames: int) -> Tensor:
    """Which slots [B, T] hold a frame number from 0 to frames - 1, bool; the others are empty."""
    return (slots >= 0) & (slots < frames)


def check_finite(name: str, features: Tensor) -> None:
    """Refuse features, the argument of that name, of which one is not finite: InputError with its place."""
    refuse([finite_doubt(name, features)])


def finite_doubt(name: str, features: Tensor) -> Doubt:
    """Whether a feature of the argument of that name is not finite."""

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
