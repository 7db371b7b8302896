"""What all pages share: their numbers, links and JSON."""

import math

import numpy as np
import pytest

from timecycle.viewing.pages import data_url, duration, link, number, plain, share, signed


def test_numbers_as_pages_show_them():
    assert [number(0.12345), number(-0.5, 1), number(math.nan), number(None)] == ["0.123", "−0.5", "–", "–"]
    assert [signed(0.5), signed(-0.5), signed(0.0), signed(math.nan)] == ["+0.500", "−0.500", "0.000", "–"]
    assert [signed(0.0004), signed(-0.0004), number(-0.0004)] == ["0.000"] * 3
    assert [share(0.5), share(-1.0), share(2.0), share(math.nan)] == [50, 0, 100, 0]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (125, "2 min"), (6000, "1 h 40 min")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_values_become_json():
    found = plain({"a": np.array([0.123456, math.nan, 2.0]), "b": (np.int64(3), "x", None), "c": [1e-7 / 3, -math.inf]})
    assert found == {"a": [0.1235, None, 2], "b": [3, "x", None], "c": [3.333e-08, None]}


def test_links_and_data():
    assert link("a b#c", "\udcff.jpg") == "a%20b%23c/%FF.jpg"
    assert data_url(b"\0\1", "x.jpg") == "data:image/jpeg;base64,AAE="
    assert data_url(b"", "x.mp4") == "data:video/mp4;base64,"
