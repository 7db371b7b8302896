"""What can run an operator here. The only module that knows what is installed.

Each operator has an ordered list of backends; the first that can run a call runs it. One that cannot says why, and that
reason is what a caller sees who asked for it by name.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from timecycle.errors import InputError

LIBRARY = torch.library.Library("timecycle", "DEF")
"""Operators are declared here, once, in Python; compiled modules attach their kernels."""


@dataclass(frozen=True)
class Backend:
    """One way to run an operator."""

    name: str
    why_not: Callable[..., str | None]
    """Called with the operator's arguments: None if it can run them, else the reason in a few words."""
    run: Callable[..., Any]


def _load_native() -> str | None:
    """Import the compiled module, which attaches its kernels to the operators; returns why that is not possible."""
    try:
        import timecycle._C  # noqa: F401
    except ImportError as error:
        return f"the compiled module is not there ({error}); build it with: python setup.py build_ext"
    return None


def choose(operator: str, candidates: Sequence[Backend], wanted: str | None, *arguments: Any) -> Backend:
    """The first candidate that can run the arguments, or the one asked for by name.

    Raises InputError if the wanted one is unknown, or cannot run them, with its reason.
    """
    for candidate in candidates:
        if wanted in (None, candidate.name):
            reason = candidate.why_not(*arguments)
            if reason is None:
                return candidate
            if wanted is not None:
                raise InputError(f"backend {wanted!r} cannot run {operator} here: {reason}")
    names = ", ".join(candidate.name for candidate in candidates)
    raise InputError(f"backend {wanted!r} is unknown to {operator}; expected one of {names}")


NATIVE_MISSING = _load_native()
"""Why there are no compiled kernels; None if there are."""
