"""MATLAB files: one that SciPy wrote, ones made here, and every way they can be wrong."""

import base64
from pathlib import Path

import numpy as np
import pytest

from tests.task_cases import write_mat
from timecycle.errors import InputError
from timecycle.tasks.matfile import read_mat

POSITIONS = np.arange(12.0).reshape(2, 3, 2) + 0.5
# What scipy.io.savemat 1.17.1 wrote of {"viewpoint": "front", "pos_img": POSITIONS}, compressed, from byte 124 on.
BY_SCIPY = bytes(124) + base64.b64decode(
    "AAFJTQ8AAAAzAAAAeJzjY2Bg8ABiNiDmAGIWBghghfIZoWwQzQnEZZmp5QX5mXklUHUCUPm0onywGACfLwapDwAAAFUAAAB4nONjYGBYAMRsQMwBpUGA"
    "FYh5gJgJiJmhNAgwAjE7EBfkF8dn5qYzcALZCQww8MAeQks5QGgWKK0IpYWgtCqU/gFVLwfl80BpZSgtBqXVHQAaCgoQ"
)


def test_reads_what_scipy_writes(tmp_path: Path):
    path = tmp_path / "scipy.mat"
    path.write_bytes(BY_SCIPY)
    np.testing.assert_array_equal(read_mat(path, "pos_img"), POSITIONS)
    with pytest.raises(InputError, match=r"holds no numeric array viewpoint; expected one"):
        read_mat(path, "viewpoint")


def test_reads_the_array_that_is_asked_for(tmp_path: Path):
    path = tmp_path / "made.mat"
    write_mat(path, other=np.ones((1, 5)), pos_img=POSITIONS)
    np.testing.assert_array_equal(read_mat(path, "pos_img"), POSITIONS)
    np.testing.assert_array_equal(read_mat(path, "other"), np.ones((1, 5)))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda data: data[:-5], "damaged"),
        (lambda data: data[:150] + b"zzzz" + data[154:], "damaged"),
        (
            lambda data: data[:124] + b"\x00\x02IM" + data[128:],
            "is MATLAB version 7.3; expected a MATLAB file of version 5",
        ),
        (lambda data: b"", "is no MATLAB file; expected"),
        (lambda data: b"x" * 300, "is no MATLAB file; expected"),
    ],
)
def test_what_is_no_such_file_is_named(tmp_path: Path, change, sentence):
    path = tmp_path / "bad.mat"
    path.write_bytes(change(BY_SCIPY))
    with pytest.raises(InputError, match=sentence) as refused:
        read_mat(path, "pos_img")
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"none.mat does not exist; expected a MATLAB file with pos_img"):
        read_mat(tmp_path / "none.mat", "pos_img")


def test_fewer_numbers_than_the_shape_says(tmp_path: Path):
    path = tmp_path / "short.mat"
    write_mat(path, pos_img=POSITIONS)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\x02\x00\x00\x00\x03\x00\x00\x00\x02", b"\x02\x00\x00\x00\x03\x00\x00\x00\x09"))
    with pytest.raises(InputError, match=r"damaged \(12 numbers for shape \[2, 3, 9\]\)"):
        read_mat(path, "pos_img")
