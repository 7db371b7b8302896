"""Pickles of plain values and NumPy arrays of numbers, read without running anything that they bring along.

A pickle names functions and gives them arguments. Here each name stands for a function of this module that checks its
arguments; NumPy's own would take a state that is no array's, such as a dtype with pointers in it.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from timecycle.checkpoints.pickles import PlainUnpickler, Refused
from timecycle.errors import InputError, said

NUMBERS = {np.dtype(code).str[1:] for code in "?bhilqBHILQefd"}
"""Truth values, integers and floats, as NumPy writes their types: b1, i1 to u8, f2 to f8."""


def load_arrays(path: Path) -> Any:
    """What a pickle of protocol 0 to 5 holds: plain values, and arrays of the types in `NUMBERS`.

    Raises InputError if it is damaged, or asks for anything else, of which nothing is called.
    """
    try:
        with path.open("rb") as file:
            return _Unpickler(file).load()
    except Refused as error:
        raise InputError(f"{path} is refused: {error}; expected nothing but NumPy arrays of numbers") from None
    except Exception as error:  # whatever a damaged pickle makes of itself
        raise InputError(f"{path} is damaged ({type(error).__name__}: {said(error)}); expected a pickle") from None


class _Unpickler(PlainUnpickler):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.stateful = (_Type, PickledArray)

    def named(self, module: str, name: str) -> Any:
        """What an array needs to be built, under NumPy 1's names and 2's."""
        found = _BUILDERS.get((module.replace("numpy._core", "numpy.core"), name))
        return (lambda *arguments: found(self, *arguments)) if callable(found) else found


class _Type:
    """A dtype that is being read."""

    def __init__(self, text: Any) -> None:
        if not isinstance(text, str) or text not in NUMBERS:
            raise Refused(f"it holds an array of type {said(repr(text))}")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        """Of the state that NumPy writes, (version, byte order, ...), plain types have no more than the order."""
        if state[1] not in ("|", "<", ">", "=") or state[2:] != (None, None, None, -1, -1, 0):
            raise Refused(f"it holds an array of type {self.dtype} with fields, or otherwise changed")
        self.dtype = self.dtype.newbyteorder(state[1])


class PickledArray(np.ndarray):
    """An array that is being read."""

    reader: PlainUnpickler

    def __setstate__(self, state: Any) -> None:
        """The state that NumPy writes: (version, shape, dtype, whether the first axis is innermost, bytes)."""
        _, shape, kind, fortran, data = state
        if not isinstance(data, bytes) or not isinstance(kind, _Type):
            raise Refused("it holds an array that NumPy has not written")
        check_size(len(data), kind.dtype, shape)
        self.reader.count(len(data))
        super().__setstate__((1, shape, kind.dtype, bool(fortran), data))  # type: ignore[arg-type]


def check_size(length: int, dtype: np.dtype, shape: Any) -> None:
    """Raise `Refused` if `length` bytes are not as many as it takes to fill the shape."""
    if not isinstance(shape, tuple) or any(type(size) is not int or size < 0 for size in shape):
        raise Refused("it holds an array that NumPy has not written")
    if length != math.prod(shape) * dtype.itemsize:
        raise Refused(f"it holds {length} bytes for an array {said(list(shape))} of {dtype}")


def _type(reader: PlainUnpickler, text: Any, align: Any, copy: Any) -> _Type:
    return _Type(text)


def _empty(reader: PlainUnpickler, kind: Any, shape: Any, code: Any) -> np.ndarray:
    """Of protocols 0 to 4, and of arrays with gaps: an array, which is given its state afterwards."""
    array = np.empty(0, np.uint8).view(PickledArray)
    array.reader = reader
    return array


def _filled(reader: PlainUnpickler, data: Any, kind: Any, shape: Any, order: str, axes: Any = None) -> np.ndarray:
    """Of protocol 5; order "K": the shape is that of the array whose axes are then put into the order `axes`."""
    if not isinstance(data, bytes | bytearray) or not isinstance(kind, _Type):
        raise Refused("it holds an array that NumPy has not written")
    check_size(len(data), kind.dtype, shape)
    array = np.frombuffer(data, kind.dtype) if data else np.empty(0, kind.dtype)
    return array.reshape(shape).transpose(axes) if order == "K" else array.reshape(shape, order=order)  # type: ignore[call-overload]


def _latin1(reader: PlainUnpickler, text: str, encoding: str) -> bytes:
    """How pickles of protocols 0 to 2 write bytes; the general function would run any codec."""
    reader.count(len(text))
    return text.encode("latin1")


_BUILDERS: dict[tuple[str, str], Callable[..., Any] | str] = {
    ("numpy", "ndarray"): "ndarray",  # an argument, and never called
    ("numpy", "dtype"): _type,
    ("numpy.core.multiarray", "_reconstruct"): _empty,
    ("numpy.core.numeric", "_frombuffer"): _filled,
    ("_codecs", "encode"): _latin1,
}
