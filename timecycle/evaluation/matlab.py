"""Reads one numeric array from a level 5 MAT-file (MATLAB 5 to 7).

SciPy's reader uses type numbers of the file as indices without checking their range, so that a damaged file makes it
read out of bounds. Source: MathWorks, MAT-File Format, chapter 1, "Level 5 MAT-File Format".
"""

import math
import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from timecycle.errors import InputError, said
from timecycle.files import check_is_file

LARGEST = 1 << 20  # bytes of a file; a decompressed variable may have 16 times as many

_HEADER = 128  # bytes: text, then level and byte order
_LEVEL = 0x0100
_MATRIX, _COMPRESSED = 14, 15
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""NumPy type codes, without byte order, by the type number of a data element."""
_OTHERS = {1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse"}
"""Array classes that are not dense and numeric."""
_NUMERIC = range(6, 16)
"""Numeric array classes: double, single and the integers."""
_COMPLEX, _LOGICAL = 0x0800, 0x0200


def read_array(path: Path, name: str) -> np.ndarray:
    """Read the variable of that name, as float64.

    Raises:
        InputError: the file is missing, larger than `LARGEST`, damaged, or has no array of real numbers by that name.
    """
    check_is_file(path, f"a MATLAB file with {name}")
    if (size := path.stat().st_size) > LARGEST:
        raise InputError(f"{path} has {size} bytes; expected an annotation of at most {LARGEST}")
    data = path.read_bytes()
    try:
        order = _byte_order(data)
        for variable in _variables(data[_HEADER:], order):
            (_, flags), (_, dimensions), (_, title), *numbers = _some(_elements(variable, order), 3, 4)
            if title == name.encode():
                return _array(name, order, flags, dimensions, numbers)
        raise ValueError(f"it has no variable {name}")
    except (ValueError, struct.error, zlib.error) as error:
        raise InputError(f"{path} is no MATLAB file with a numeric array {name} ({said(error)})") from None


def _byte_order(data: bytes) -> str:
    """The byte order, "<" or ">"."""
    order = {b"IM": "<", b"MI": ">"}.get(data[126:_HEADER])
    if order is None or struct.unpack_from(f"{order}H", data, 124) != (_LEVEL,):
        raise ValueError("it does not begin as one of level 5, which MATLAB 5 to 7 write")
    return order


def _variables(data: bytes, order: str) -> Iterator[bytes]:
    """The data of each variable of a file."""
    for kind, content in _elements(data, order):
        if kind == _COMPRESSED:
            ((kind, content),) = _some(_elements(_inflated(content), order), 1, 1)
        if kind == _MATRIX:
            yield content


def _inflated(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    found = inflater.decompress(data, 16 * LARGEST)
    if not inflater.eof:  # the checksum is at the end
        raise ValueError(f"a variable ends early or is larger than {16 * LARGEST} bytes")
    return found


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type number and data of each element of a file, or of a variable in it."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        at += 8
        if kind >> 16:  # small element format: up to 4 bytes of data in place of the size
            kind, size, begin, step = kind & 0xFFFF, kind >> 16, at - 4, 0
            if size > 4:
                raise ValueError(f"a small element is said to have {size} bytes")
        else:
            begin, step = at, size if kind == _COMPRESSED else -(-size // 8) * 8
        if begin + size > len(data):
            raise ValueError(f"an element is said to have {size} bytes, of {len(data) - begin} that are there")
        yield kind, data[begin : begin + size]
        at += step


def _some(elements: Iterator[tuple[int, bytes]], least: int, most: int) -> list[tuple[int, bytes]]:
    """The first `most` elements; ValueError if there are fewer than `least`."""
    found = list(islice(elements, most))
    if len(found) < least:
        raise ValueError("a variable ends early")
    return found


def _array(name: str, order: str, flags: bytes, dimensions: bytes, numbers: list[tuple[int, bytes]]) -> np.ndarray:
    """The array of a variable, from its elements."""
    (bits,) = struct.unpack_from(f"{order}I", flags)
    shape = np.frombuffer(dimensions, f"{order}i4").tolist()
    other = "complex" if bits & _COMPLEX else "logical" if bits & _LOGICAL else _OTHERS.get(bits & 0xFF)
    if other or bits & 0xFF not in _NUMERIC:
        raise ValueError(f"{name} is {other or 'of no known class'} {said(shape)}")
    if not numbers or (stored := _TYPES.get(numbers[0][0])) is None:
        raise ValueError(f"{name} has no numbers")
    values = np.frombuffer(numbers[0][1], f"{order}{stored}")
    if not 2 <= len(shape) <= 32 or min(shape) < 0 or math.prod(shape) != len(values):
        raise ValueError(f"{name} is {said(shape)} and has {len(values)} numbers")
    return values.astype(np.float64).reshape(shape, order="F")
