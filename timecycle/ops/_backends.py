"""What can run an operator here. The only module that knows what is installed.

Each operator has an ordered list of backends; the first that can run a call runs it. One that cannot says why, and that
reason is what a caller sees who asked for it by name.
"""

import functools
import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from timecycle.errors import InputError


@dataclass(frozen=True)
class Backend:
    """One way to run an operator."""

    name: str
    missing: str | None
    """Why it cannot run anything here; None if it is there."""
    why_not: Callable[..., str | None]
    """Called with an operator's arguments: None if it can run them, else the reason in a few words."""
    run: Callable[..., Any]


def _import_native() -> tuple[ModuleType | None, str | None]:
    # Compiled code links against torch's libraries, which are found only once torch itself is loaded.
    importlib.import_module("torch")
    try:
        return importlib.import_module("timecycle._C"), None
    except ImportError as error:
        return None, f"the compiled module is not there ({error}); build it with: python setup.py build_ext"


NATIVE, NATIVE_MISSING = _import_native()
"""The compiled module, and why it is not there; one of them is None."""

_REGISTERED: dict[str, tuple[Backend, ...]] = {}


def register(operator: str, *candidates: Backend) -> None:
    """Give an operator its backends, in the order they are tried."""
    _REGISTERED[operator] = candidates


def choose(operator: str, wanted: str | None, *arguments: Any) -> Backend:
    """The first backend that can run the arguments, or the one asked for by name.

    Raises InputError if the wanted one is unknown, or cannot run them, with its reason.
    """
    candidates = _REGISTERED[operator]
    if wanted is None and candidates[0].missing:
        _say_once(f"{operator} runs without its fastest backend: {candidates[0].missing}")
    for candidate in candidates:
        if wanted in (None, candidate.name):
            reason = candidate.missing or candidate.why_not(*arguments)
            if reason is None:
                return candidate
            if wanted is not None:
                raise InputError(f"backend {wanted!r} cannot run {operator} here: {reason}")
    names = ", ".join(candidate.name for candidate in candidates)
    raise InputError(f"backend {wanted!r} is unknown to {operator}; expected one of {names}")


@functools.cache
def _say_once(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=4)


def backends() -> None:
    """Print every operator's backends in the order they are tried, and why one is not there."""
    for operator, candidates in _REGISTERED.items():
        for candidate in candidates:
            print(f"{operator}: {candidate.name}: {candidate.missing or 'ready'}")
