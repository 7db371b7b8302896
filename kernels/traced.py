"""Kernels that torch.compile sees: inside `traced` they are recorded while it traces, else launched as they are."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

_TRACED = ContextVar("traced", default=False)


@contextmanager
def traced() -> Iterator[None]:
    """For the body of a torch.library.triton_op."""
    token = _TRACED.set(True)
    try:
        yield
    finally:
        _TRACED.reset(token)


def launched(kernel: Any) -> Any:
    """A Triton kernel, to be launched with a grid; recorded instead where PyTorch traces a `traced` body."""
    return torch.library.wrap_triton(kernel) if _TRACED.get() else kernel
