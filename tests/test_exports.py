"""Tables, COCO files and cut-outs of tracked objects."""

import numpy as np
import pytest

from timecycle.errors import InputError
from timecycle.tracking.coco import rle_decode, rle_encode


def coco_string(counts: list[int]) -> str:
    """As rleToString of cocoapi's maskApi.c, line by line."""
    text = ""
    for place, count in enumerate(counts):
        rest, more = count - (counts[place - 2] if place > 2 else 0), True
        while more:
            bits, rest = rest & 31, rest >> 5
            more = rest != -1 if bits & 16 else rest != 0
            text += chr(bits + 32 * more + 48)
    return text


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (5, 7), (64, 48), (301, 5)])
def test_run_lengths_are_those_of_coco(size):
    random = np.random.default_rng(0)
    for share in (0, 0.01, 0.3, 0.9, 1):
        mask = random.random(size) < share
        rle = rle_encode(mask)
        flat = mask.T.ravel().astype(int).tolist()
        counts, now = [0], 0
        for value in flat:
            if value != now:
                counts.append(0)
                now = value
            counts[-1] += 1
        assert rle == {"size": list(size), "counts": coco_string(counts)}
        for coded in (rle, {**rle, "counts": rle["counts"].encode()}, {**rle, "counts": counts}):
            found = rle_decode(coded)
            assert found.dtype == bool
            np.testing.assert_array_equal(found, mask)


def test_long_runs_are_coded():
    mask = np.zeros((1200, 1000), bool)
    mask[3, 2] = mask[7, 990] = mask[1199, 999] = True
    assert rle_encode(mask)["counts"] == coco_string([2403, 1, 1185603, 1, 11991, 1])
    np.testing.assert_array_equal(rle_decode(rle_encode(mask)), mask)


def test_an_example_worked_out_by_hand():
    mask = np.zeros((4, 3), bool)
    mask[1, 1] = mask[2, 1] = mask[2, 2] = True  # column-major: 5 zeros, 2 ones, 3 zeros, 1 one, 1 zero
    assert rle_encode(mask) == {"size": [4, 3], "counts": "523ON"}  # from the fourth on 1 - 2 = -1 and 1 - 3 = -2
    np.testing.assert_array_equal(rle_decode({"size": [4, 3], "counts": "523ON"}), mask)


@pytest.mark.parametrize(
    ("rle", "wrong"),
    [
        ({}, "the size None; expected"),
        ({"size": [4], "counts": "525"}, "has the size"),
        ({"size": [4, 0], "counts": ""}, "has the size"),
        ({"size": [4, 3.5], "counts": ""}, "has the size"),
        ({"size": [10**9, 10**9], "counts": "525"}, "has 1000000000 x 1000000000 pixels; expected at most"),
        ({"size": [4, 3]}, "has the counts None"),
        ({"size": [4, 3], "counts": [5, -2, 9]}, r"has the counts \[5, -2, 9\]"),
        ({"size": [4, 3], "counts": [5, 2, 6]}, "do not add up to 3 x 4 pixels"),
        ({"size": [4, 3], "counts": ""}, "do not add up"),
        ({"size": [4, 3], "counts": "52"}, "do not add up"),
        ({"size": [4, 3], "counts": "52@"}, "do not add up"),
        ({"size": [4, 3], "counts": "52X"}, "damaged counts"),
        ({"size": [4, 3], "counts": "52 "}, "damaged counts"),
        ({"size": [4, 3], "counts": "52é"}, "damaged counts"),
        ({"size": [4, 3], "counts": "o" * 99 + "5"}, "damaged counts"),
    ],
)
def test_damaged_run_lengths_are_refused(rle, wrong):
    with pytest.raises(InputError, match=f"object 7 .*{wrong}"):
        rle_decode(rle, "object 7")
