"""Backends of the operators: which are installed here, and which one runs a call.

Each operator has an ordered list of backends; the first that can run a call runs it. One that cannot gives a reason,
which is the error if it was requested by name.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch  # before the compiled module, which links against its libraries

from timecycle.errors import InputError
from timecycle.kernels.launch import Launch
from timecycle.native import say_if_installed_without, say_missing, why_missing


@dataclass(frozen=True)
class Backend:
    """One way to run an operator."""

    name: str
    missing: str | None
    """Why it cannot run anything here; None if it is there."""
    why_not: Callable[..., str | None]
    """Called with what `run` takes: None if it can run that, else the reason in a few words."""
    run: Callable[..., Any]
    device: str | None = "cpu"
    """Device type it serves: calls with tensors there warn if it is missing. None: no warning."""
    unless_asked: Callable[..., str | None] = lambda *_: None
    """Called with what it can run: None, or why another backend should, unless this one is requested by name."""


def _import_compiled(name: str) -> tuple[ModuleType | None, str | None]:
    try:
        return importlib.import_module(f"timecycle.{name}"), None
    except ImportError as error:
        return None, why_missing(error)


NATIVE, NATIVE_MISSING = _import_compiled("_C")
"""The compiled module, and why it is not there; one of them is None."""
say_if_installed_without()  # at once, since pip has hidden that the build found no torch or compiler


def _import_cuda() -> tuple[ModuleType | None, str | None]:
    if torch.version.hip or not torch.cuda.is_available():
        return None, "there is no NVIDIA GPU that PyTorch can use"
    return _import_compiled("_cuda")


CUDA, CUDA_MISSING = _import_cuda()
"""The module of CUDA kernels, and why it cannot be used; one of them is None."""

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton runs its kernels in Python, on CPU tensors: for tests."""


def interpreter_missing() -> str | None:
    """Why Triton's interpreter could not run the kernels here, None if it could."""
    triton, numpy = (importlib.metadata.version(name).split(".")[:2] for name in ("triton", "numpy"))
    if triton == ["3", "6"] and [int(part) for part in numpy] >= [2, 4]:
        return "the interpreter of Triton 3.6 needs a NumPy below 2.4"  # it makes numbers of arrays of one element
    return None


def _triton_missing() -> str | None:
    # Without importing Triton, which takes a while and which CPU users do not need.
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if INTERPRETED:
        return interpreter_missing()
    if torch.cuda.is_available():
        return None
    return "there is no GPU that PyTorch can use, and TRITON_INTERPRET=1 is not set"


TRITON_MISSING = _triton_missing()
"""Why Triton kernels cannot run here; None if they can."""


def why_not_triton(features: Any) -> str | None:
    """Why a Triton kernel cannot take these features; None if it can."""
    if features.device.type != ("cpu" if INTERPRETED else "cuda"):
        return f"the features are on {features.device}"
    if features.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it has no {features.dtype} kernel"
    return None if INTERPRETED or torch.version.hip else why_not_cuda(features)


def why_not_cpu(features: Any) -> str | None:
    """Why the compiled kernels cannot take these features; None if they can."""
    if features.device.type != "cpu":
        return f"the features are on {features.device}"
    return None if features.dtype != torch.float64 else "it has no float64 kernel"


def why_not_cuda(tensor: Any) -> str | None:
    """Why a CUDA kernel cannot run where this tensor is; None if it can."""
    if tensor.device.type != "cuda":
        return f"the tensors are on {tensor.device}"
    chip = torch.cuda.get_device_properties(tensor.device)  # which PyTorch can ask for while it traces
    if (chip.major, chip.minor) < (8, 0):
        return f"{chip.name} is older than compute capability 8.0"
    return None


def launch(tensor: Any) -> Launch:
    """Where the CUDA module works on a tensor."""
    assert CUDA is not None
    stream = torch.cuda.current_stream(tensor.device).cuda_stream
    return Launch(CUDA, tensor.device.index, stream, torch.cuda.get_device_capability(tensor.device) == (9, 0))


def run_kernels(module: str, function: str) -> Callable[..., Any]:
    """A function of timecycle.kernels, imported, and Triton with it, when it is first called."""
    imported = functools.cache(lambda: importlib.import_module(f"timecycle.kernels.{module}"))

    def run(*arguments: Any) -> Any:
        # Kernels are launched on the current device, which need not be the tensors'.
        device = arguments[0].device
        with torch.cuda.device(device.index if device.type == "cuda" else -1):
            return getattr(imported(), function)(*arguments)

    return run


def triton(module: str, function: str, why_not: Callable[..., str | None]) -> Backend:
    """The backend that is a function of timecycle.kernels."""
    return Backend("triton", TRITON_MISSING, why_not, run_kernels(module, function), "cuda")


def native(function: str, why_not: Callable[..., str | None]) -> Backend:
    """The backend that is a function of the compiled module."""
    return Backend("cpu", NATIVE_MISSING, why_not, lambda *arguments: getattr(NATIVE, function)(*arguments))


def reference(run: Callable[..., Any]) -> Backend:
    """The backend that is the definition in PyTorch, which runs everything."""
    return Backend("reference", None, lambda *_: None, run)


def wanted_backward(backend: str) -> str | None:
    """The backend to request for the backward pass after `backend` was requested for the forward pass ("" for none).

    Only the reference is passed on; another backend may lack the gradient.
    """
    return "reference" if backend == "reference" else None


_REGISTERED: dict[str, tuple[Backend, ...]] = {}


def register(operator: str, *candidates: Backend) -> None:
    """Give an operator its backends, in the order they are tried."""
    _REGISTERED[operator] = candidates


def choose(operator: str, wanted: str | None, *arguments: Any) -> Backend:
    """The first backend that can run the arguments, or the one requested by name.

    Raises InputError if the wanted one is unknown, or cannot run them, with its reason.
    """
    candidates = _REGISTERED[operator]
    for candidate in candidates:
        if wanted in (None, candidate.name):
            if wanted is None and candidate.missing and candidate.device == arguments[0].device.type:
                say_missing(candidate.missing)
            reason = candidate.missing or candidate.why_not(*arguments)
            if reason is None and wanted is None:
                reason = candidate.unless_asked(*arguments)
            if reason is None:
                return candidate
            if wanted is not None:
                raise InputError(f"backend {wanted!r} cannot run {operator} here: {reason}")
    names = ", ".join(candidate.name for candidate in candidates)
    raise InputError(f"backend {wanted!r} is unknown to {operator}; expected one of {names}")


class BackendState(NamedTuple):
    """A backend of an operator, as it is on this machine."""

    operator: str
    """Its name in `timecycle.ops`; those of gradients end in _backward."""
    backend: str
    """'cuda', 'triton', 'cpu' or 'reference'."""
    device: str
    """Device type of the tensors that it takes; "any" for the reference."""
    reason: str | None
    """Why it cannot run anything here; None if it is ready."""

    @property
    def ready(self) -> bool:
        """Whether it can run calls here."""
        return self.reason is None


def states() -> list[BackendState]:
    """Every backend of every operator: operators by name, the backends of one in the order they are tried.

    `timecycle.ops.backends()` is this function.
    """
    return [
        BackendState(operator, each.name, "any" if each.name == "reference" else each.device or "any", each.missing)
        for operator, candidates in sorted(_REGISTERED.items())
        for each in candidates
    ]


def print_backends() -> None:
    """Print a line for every backend of every operator, in the order they are tried: ready, or why it is not."""
    for state in states():
        print(f"{state.operator}: {state.backend}: {state.reason or 'ready'}")


class _Callable(ModuleType):
    """The type of this module, which can be called: timecycle.ops.backends()."""

    def __call__(self) -> list[BackendState]:
        return states()


sys.modules[__name__].__class__ = _Callable
