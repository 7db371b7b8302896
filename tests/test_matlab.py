"""MATLAB files as SciPy writes them, and damaged ones, some of which crash SciPy's reader."""

import contextlib
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from timecycle.errors import InputError
from timecycle.evaluation.matlab import LARGEST, read_array

scipy_io = pytest.importorskip("scipy.io", reason="SciPy is not installed")

DTYPES = ["f8", "f4", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8))]
SHAPES = [(2, 15, 3), (1, 1), (2, 0), (3, 2, 1, 4)]
REFUSED = r"is no MATLAB file with a numeric array x \("


def written(path: Path, **options: Any) -> Path:
    """A file with x = [[1.5, 2.5]], float64."""
    scipy_io.savemat(path, {"x": np.array([[1.5, 2.5]])}, **options)
    return path


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_are_read_as_they_were_written(tmp_path, dtype, shape, compressed):
    values = (np.random.default_rng(0).random(shape) * 100).astype(dtype)
    before = {"a": np.ones((40, 40)), "b": "text", "c": {"x": values + 1}, "d": np.array([[1, "b"]], object)}
    scipy_io.savemat(tmp_path / "a.mat", before | {"x": values, "y": values + 2}, do_compression=compressed)
    found = read_array(tmp_path / "a.mat", "x")
    assert found.dtype == np.float64
    assert found.flags.writeable
    np.testing.assert_array_equal(found, values)


def element(order: str, kind: int, content: bytes) -> bytes:
    return struct.pack(f"{order}II", kind, len(content)) + content + bytes(-len(content) % 8)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("small", [False, True])
def test_either_byte_order_and_numbers_stored_as_smaller_ones(tmp_path, order, small):
    """MATLAB stores whole doubles as integers, and data of up to 4 bytes in the tag."""
    content = struct.pack(f"{order}2H", 7, 300)
    numbers = struct.pack(f"{order}I", 4 << 16 | 4) + content if small else element(order, 4, content)
    name = struct.pack(f"{order}I", 1 << 16 | 1) + b"x\0\0\0" if small else element(order, 1, b"x")
    flags, shape = (
        element(order, 6, struct.pack(f"{order}2I", 6, 0)),
        element(order, 5, struct.pack(f"{order}2i", 1, 2)),
    )
    start = b"MATLAB".ljust(124) + struct.pack(f"{order}H", 0x0100) + (b"IM" if order == "<" else b"MI")
    (tmp_path / "a.mat").write_bytes(start + element(order, 14, flags + shape + name + numbers))
    np.testing.assert_array_equal(read_array(tmp_path / "a.mat", "x"), [[7, 300]])
    if sys.byteorder == "little" and order == "<":
        np.testing.assert_array_equal(scipy_io.loadmat(tmp_path / "a.mat")["x"], [[7, 300]])


@pytest.mark.parametrize("number", [0, 8, 20, 21, 1000, 0x7FFF, 0xFFFF])
def test_unknown_types_are_refused(tmp_path, number):
    path = written(tmp_path / "a.mat")
    data = path.read_bytes()
    at = data.rindex(struct.pack("<II", 9, 16))
    path.write_bytes(data[:at] + struct.pack("<I", number) + data[at + 4 :])
    with pytest.raises(InputError, match=REFUSED + "x has no numbers"):
        read_array(path, "x")


def test_every_byte_changed_is_read_or_refused(tmp_path):
    data = written(tmp_path / "a.mat").read_bytes()
    path = tmp_path / "b.mat"
    for at in range(124, len(data)):
        for value in (0, 1, 0x80, 0xFF):
            path.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
            with contextlib.suppress(InputError):
                assert read_array(path, "x").size == 2


def test_every_bit_changed_in_a_compressed_variable_is_noticed(tmp_path):
    data = written(tmp_path / "a.mat", do_compression=True).read_bytes()
    path = tmp_path / "b.mat"
    unnoticed = []
    for at in range(136, len(data)):
        for bit in range(8):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
            with contextlib.suppress(InputError):
                if not np.array_equal(read_array(path, "x"), [[1.5, 2.5]]):
                    unnoticed.append((at, bit))
    assert not unnoticed


@pytest.mark.parametrize("compressed", [False, True])
def test_files_that_end_early_are_refused(tmp_path, compressed):
    path = written(tmp_path / "a.mat", do_compression=compressed)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=REFUSED):
            read_array(path, "x")


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 3), r"x is \[1, 3\] and has 2 numbers"),
        ((-1, -2), r"x is \[-1, -2\] and has 2 numbers"),
        ((2**31 - 1, 2**31 - 1), r"x is \[2147483647, 2147483647\] and has 2 numbers"),
    ],
)
def test_shapes_that_do_not_fit_the_numbers_are_refused(tmp_path, shape, said):
    path = written(tmp_path / "a.mat")
    path.write_bytes(path.read_bytes().replace(struct.pack("<2i", 1, 2), struct.pack("<2i", *shape)))
    with pytest.raises(InputError, match=REFUSED + said):
        read_array(path, "x")


def test_a_decompression_bomb_is_refused(tmp_path):
    path = written(tmp_path / "a.mat")
    packed = zlib.compress(bytes(20 * LARGEST))
    path.write_bytes(path.read_bytes()[:128] + element("<", 15, packed))
    with pytest.raises(InputError, match=f"ends early or is larger than {16 * LARGEST} bytes"):
        read_array(path, "x")


def test_other_forms_and_files_without_the_variable_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not begin as one of level 5"):
        read_array(written(tmp_path / "4.mat", format="4"), "x")
    (tmp_path / "7.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + bytes(384) + b"\x89HDF")
    with pytest.raises(InputError, match="does not begin as one of level 5"):
        read_array(tmp_path / "7.mat", "x")
    with pytest.raises(InputError, match="it has no variable y"):
        read_array(written(tmp_path / "5.mat"), "y")
