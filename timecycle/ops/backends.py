"""What can run an operator here. The only module that knows what is installed.

Each operator has an ordered list of backends; the first that can run a call runs it. One that cannot says why, and that
reason is what a caller sees who asked for it by name.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from timecycle.errors import InputError


@dataclass(frozen=True)
class Backend:
    """One way to run an operator."""

    name: str
    why_not: Callable[..., str | None]
    """Called with the operator's arguments: None if it can run them, else the reason in a few words."""
    run: Callable[..., Any]


def native() -> ModuleType:
    """The compiled module. Raises ImportError where it is not there."""
    return importlib.import_module("timecycle._C")


def _native_missing() -> str | None:
    # Compiled code links against torch's libraries, which are found only once torch itself is loaded.
    importlib.import_module("torch")
    try:
        native()
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


NATIVE_MISSING = _native_missing()
"""Why there are no compiled kernels; None if there are."""
