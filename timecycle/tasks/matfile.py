"""Numeric arrays out of MATLAB files of versions 5 to 7, which JHMDB's joints come in. Reads numbers, runs nothing."""

import struct
import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np

from timecycle.errors import InputError

HEADER_BYTES = 128
MATRIX, COMPRESSED = 14, 15
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""NumPy's name of each type that numbers are stored as."""
COMPLEX = 0x0800  # among an array's flags, whose last byte is its class
NUMERIC_CLASSES = range(6, 16)  # double, single and the integers; below are cells, structs, text, sparse matrices


def read_mat(path: Path, name: str) -> np.ndarray:
    """The array stored under a name, float64 of the shape that MATLAB shows.

    Raises InputError if the file is missing, damaged, of another version, or holds no real numeric array of that name.

    Source: The MathWorks, MAT-File Format, "Level 5 MAT-File Format".
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected a MATLAB file with {name}")
    data = path.read_bytes()
    mark = data[HEADER_BYTES - 4 : HEADER_BYTES]
    order = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}.get(mark)
    if order is None:
        what = "MATLAB version 7.3" if mark == b"\x00\x02IM" else "no MATLAB file"
        raise InputError(f"{path} is {what}; expected a MATLAB file of version 5 to 7")
    try:
        for found, array in _arrays(data[HEADER_BYTES:], order):
            if found == name:
                return array
    except (ValueError, struct.error, zlib.error) as error:
        raise InputError(f"{path} is damaged ({error}); expected a complete MATLAB file") from None
    raise InputError(f"{path} holds no numeric array {name}; expected one")


def _arrays(data: bytes, order: str) -> Iterator[tuple[str, np.ndarray]]:
    for kind, content in _elements(data, order):
        if kind == COMPRESSED:
            yield from _arrays(zlib.decompress(content), order)
        elif kind == MATRIX:
            parts = [part for _, part in zip(range(4), _elements(content, order), strict=False)]
            # Flags, dimensions, name, numbers; an array of another class goes on differently.
            flags = struct.unpack_from(f"{order}I", parts[0][1])[0] if len(parts) == 4 else COMPLEX
            if flags & COMPLEX or flags & 0xFF not in NUMERIC_CLASSES:
                continue
            shape = np.frombuffer(parts[1][1], f"{order}i4").tolist()
            stored, numbers = parts[3]
            if stored not in NUMBERS:
                raise ValueError(f"numbers of unknown type {stored}")
            flat = np.frombuffer(numbers, order + NUMBERS[stored])
            if flat.size != prod(shape):
                raise ValueError(f"{flat.size} numbers for shape {shape}")
            yield parts[2][1].decode("ascii", "replace"), flat.astype(np.float64).reshape(shape, order="F")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and content of each element in turn."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        start, step = at + 8, 8 + size + -size % 8
        if kind >> 16:  # a small element: its size beside its type, and its content in the tag
            kind, size, start, step = kind & 0xFFFF, kind >> 16, at + 4, 8
        elif kind == COMPRESSED:  # the only kind that is not padded to multiples of 8 bytes
            step = 8 + size
        if start + size > len(data):
            raise ValueError("it ends early")
        yield kind, data[start : start + size]
        at += step
