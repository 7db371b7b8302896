"""Objects whose pickles call what a test says: for tests of what readers refuse."""

import collections
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch


class Call:
    """Pickles to a call of a function with arguments, and a state that the result is given."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], *state: Any) -> None:
        self.reduced = (function, arguments, *state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


class Stored:
    """Pickles, by `dumps`, to a persistent id as torch.save writes one: the storage of record `key`."""

    def __init__(self, kind: Any = torch.FloatStorage, count: Any = 4, key: Any = "0") -> None:
        self.id = ("storage", kind, key, "cpu", count)


class _Pickler(pickle._Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.id if isinstance(value, Stored) else None


def dumps(value: Any, protocol: int = 2) -> bytes:
    """A pickle as torch.save writes it."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol).dump(value)
    return buffer.getvalue()


def tensor(size: Any, stride: Any, offset: Any = 0, storage: Any = None) -> Call:
    """A tensor of a storage, by default of four float32."""
    arguments = (storage or Stored(), offset, size, stride, False, collections.OrderedDict())
    return Call(torch._utils._rebuild_tensor_v2, arguments)
