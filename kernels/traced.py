"""Kernels that torch.compile can trace: inside `traced` they are wrapped for it, else launched directly."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

_TRACED = ContextVar("traced", default=False)


@contextmanager
def traced() -> Iterator[None]:
    """Context for the body of a torch.library.triton_op."""
    token = _TRACED.set(True)
    try:
        yield
    finally:
        _TRACED.reset(token)


def launched(kernel: Any) -> Any:
    """The Triton kernel, wrapped for tracing inside `traced`."""
    return torch.library.wrap_triton(kernel) if _TRACED.get() else kernel
