"""Reads pickles of plain values and NumPy arrays of numbers without executing code from them.

A pickle names functions to call. Here each allowed name is mapped to a function of this module that checks its
arguments, because NumPy's own functions accept states that are not safe, such as a dtype with pointers.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from timecycle.checkpoints.pickles import PlainUnpickler, Refused
from timecycle.errors import InputError, said

NUMBERS = {np.dtype(code).str[1:] for code in "?bhilqBHILQefd"}
"""NumPy codes of bool, integers and floats: b1, i1 to u8, f2 to f8."""


def load_arrays(path: Path) -> Any:
    """Load a pickle of protocol 0 to 5 with plain values and arrays of the types in `NUMBERS`.

    Raises InputError if it is damaged or names anything else, without calling it.
    """
    try:
        with path.open("rb") as file:
            return _Unpickler(file).load()
    except Refused as error:
        raise InputError(f"{path} is refused: {error}; expected nothing but NumPy arrays of numbers") from None
    except Exception as error:  # damaged pickles raise many kinds of errors
        raise InputError(f"{path} is damaged ({type(error).__name__}: {said(error)}); expected a pickle") from None


class _Unpickler(PlainUnpickler):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.stateful = (_Type, PickledArray)

    def named(self, module: str, name: str) -> Any:
        """The replacement for a name, as written by NumPy 1 or 2."""
        found = _BUILDERS.get((module.replace("numpy._core", "numpy.core"), name))
        return (lambda *arguments: found(self, *arguments)) if callable(found) else found


class _Type:
    """A dtype while it is unpickled."""

    def __init__(self, text: Any) -> None:
        if not isinstance(text, str) or text not in NUMBERS:
            raise Refused(f"it holds an array of type {said(repr(text))}")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        """Take the state (version, byte order, ...) that NumPy writes; numeric types only have a byte order."""
        if state[1] not in ("|", "<", ">", "=") or state[2:] != (None, None, None, -1, -1, 0):
            raise Refused(f"it holds an array of type {self.dtype} with fields, or otherwise changed")
        self.dtype = self.dtype.newbyteorder(state[1])


class PickledArray(np.ndarray):
    """An array while it is unpickled."""

    reader: PlainUnpickler

    def __setstate__(self, state: Any) -> None:
        """Take the state (version, shape, dtype, Fortran order, bytes) that NumPy writes."""
        _, shape, kind, fortran, data = state
        if not isinstance(data, bytes) or not isinstance(kind, _Type):
            raise Refused("it holds an array that NumPy has not written")
        check_size(len(data), kind.dtype, shape)
        self.reader.count(len(data))
        super().__setstate__((1, shape, kind.dtype, bool(fortran), data))  # type: ignore[arg-type]


def check_size(length: int, dtype: np.dtype, shape: Any) -> None:
    """Raise `Refused` unless an array of that shape and dtype has `length` bytes."""
    if not isinstance(shape, tuple) or any(type(size) is not int or size < 0 for size in shape):
        raise Refused("it holds an array that NumPy has not written")
    if length != math.prod(shape) * dtype.itemsize:
        raise Refused(f"it holds {length} bytes for an array {said(list(shape))} of {dtype}")


def _empty(reader: PlainUnpickler, kind: Any, shape: Any, code: Any) -> np.ndarray:
    """Protocols 0 to 4, and non-contiguous arrays: an empty array, whose state is set afterwards."""
    array = np.empty(0, np.uint8).view(PickledArray)
    array.reader = reader
    return array


def _filled(reader: PlainUnpickler, data: Any, kind: Any, shape: Any, order: str, axes: Any = None) -> np.ndarray:
    """Protocol 5; with order "K", the array is transposed by `axes` after reshaping."""
    if not isinstance(data, bytes | bytearray) or not isinstance(kind, _Type):
        raise Refused("it holds an array that NumPy has not written")
    check_size(len(data), kind.dtype, shape)
    array = np.frombuffer(data, kind.dtype) if data else np.empty(0, kind.dtype)
    return array.reshape(shape).transpose(axes) if order == "K" else array.reshape(shape, order=order)  # type: ignore[call-overload]


_BUILDERS: dict[tuple[str, str], Callable[..., Any] | str] = {
    ("numpy", "ndarray"): "ndarray",  # an argument only, never called
    ("numpy", "dtype"): lambda reader, text, align, copy: _Type(text),
    ("numpy.core.multiarray", "_reconstruct"): _empty,
    ("numpy.core.numeric", "_frombuffer"): _filled,
    ("_codecs", "encode"): PlainUnpickler.encoded,
}
