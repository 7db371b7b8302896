"""Pickles that would exhaust memory, time or the stack are refused in one sentence."""

import copyreg
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.assertions import raises_input_error
from timecycle.errors import InputError
from timecycle.evaluation.pickled import load_arrays

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def refused(path: Path, data: bytes, said: str) -> None:
    path.write_bytes(data)
    with raises_input_error(str(path), match=said):
        load_arrays(path)


@pytest.mark.parametrize("version", PROTOCOLS)
def test_plain_values_are_read_as_they_are(version, tmp_path):
    value = {
        "a": [1, -(2**70), 1.5, None, True, "text\n\u1234", b"bytes", ()], (1, "b"): {"deep": [[(), {}]]}, 3: {1, 2},
        "frozen": frozenset([1]), "array": bytearray(b"abc"),
    }  # fmt: skip
    if version < 5:  # earlier protocols write a class name
        value.pop("array")
    if version < 4:
        value.pop("frozen")
        value[3] = 4
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(value, version))
    assert load_arrays(path) == value


DEEP = b"\x85" * 10**5  # tuples in tuples
WIDE = b"".join(b"\x94" + b"h" + bytes([n]) + b"\x86" for n in range(90))  # nested pairs that share their elements


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04}K\x01" + DEEP + b"K\x01s.",
        b"\x80\x04}(K\x01" + DEEP + b"K\x01u.",
        b"\x80\x04(K\x01" + DEEP + b"K\x01d.",
        b"\x80\x04\x8f(K\x01" + DEEP + b"\x90.",
        b"\x80\x04(K\x01" + DEEP + b"\x91.",
        b"\x80\x04}K\x01" + WIDE + b"K\x01s.",
        b"\x80\x04(K\x01" + WIDE + b"\x91.",
    ],
)
def test_keys_that_are_too_large_to_hash_are_refused(data, tmp_path):
    """Python hashes tuples recursively, and shared elements repeatedly."""
    refused(tmp_path / "a.pkl", data, "it has a key of more than 1000 parts")


def test_deeply_nested_tuples_are_read(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x04K\x01" + DEEP + b".")
    assert isinstance(load_arrays(path), tuple)


@pytest.mark.parametrize(
    "data",
    [b"\x8e" + struct.pack("<Q", 2**62), b"\x96" + struct.pack("<Q", 2**40), b"\x8d" + struct.pack("<Q", 2**34),
     b"B" + struct.pack("<I", 2**32 - 1), b"\x8b" + struct.pack("<i", 2**31 - 1), b"\x95" + struct.pack("<Q", 2**40),
     b"T" + struct.pack("<i", 2**31 - 1), b"X" + struct.pack("<I", 2**32 - 1)],
)  # fmt: skip
def test_sizes_beyond_the_end_of_the_file_are_refused(data, tmp_path):
    refused(tmp_path / "a.pkl", b"\x80\x05" + data + b"abc.", r"is damaged \(EOFError: it ends early\)")


@pytest.mark.parametrize(
    "data",
    [b"I" + b"9" * 5000 + b"\n.", b"L" + b"9" * 5000 + b"L\n.", b"p-1\n.", b"Nq\0h\5.", b"0.", b"t.", b".",
     b"", b"\x80\x09N.",
     b"\xff.", b"}N.", b"(I1\nd.", b"]N\x85\x81.", b"V\\ud800\\\n.", b"S'a\n.", b"F1e\n.", b"\x97.", b"Pa\n."],
)  # fmt: skip
def test_damaged_pickles_are_read_or_refused(data, tmp_path):
    path, said = tmp_path / "a.pkl", ""
    path.write_bytes(data)
    try:
        load_arrays(path)
    except InputError as error:
        said = str(error)
    assert "\n" not in said
    assert (data == b".") <= bool(said)


def test_repeated_strings_that_grow_are_refused(tmp_path):
    text = b"X" + struct.pack("<I", 10**5) + b"a" * 10**5 + b"\x94"
    each = b"c_codecs\nencode\nh\0X\6\0\0\0latin1\x86R"
    refused(tmp_path / "a.pkl", b"\x80\x04" + text + b"](" + each * 1000 + b"e.", "it makes more values than it holds")


class Swapped:
    """Pickles to an array of the other byte order, which is copied when it is read."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> Any:
        function, arguments, state = np.zeros(0, ">f8").__reduce__()
        return function, arguments, (1, (len(self.data) // 8,), *state[2:4], self.data)


def test_arrays_larger_than_the_file_are_refused(tmp_path):
    data = bytes(80_000)
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(Swapped(data), 4))
    assert np.array_equal(load_arrays(path), np.zeros(10_000))
    refused(path, pickle.dumps([Swapped(data) for _ in range(100)], 4), "it makes more values than it holds")


def test_the_copyreg_extension_registry_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setitem(copyreg._inverted_registry, 240, ("os", "system"))
    monkeypatch.setitem(copyreg._extension_cache, 240, print)
    refused(tmp_path / "a.pkl", b"\x80\x02\x82\xf0.", "where an operation should be")


class Item:
    """Pickles to an array and an item that is set in it."""

    def __reduce__(self) -> Any:
        array = np.zeros(2000, np.uint8).__reduce_ex__(2)
        return (*array[:3], None, iter([(0, 1)]))


def test_setting_items_of_arrays_is_refused(tmp_path):
    refused(tmp_path / "a.pkl", pickle.dumps(Item(), 2), "it puts items into a PickledArray")


@pytest.mark.parametrize("name", ["builtins\neval", "os\nsystem", "numpy\nload", "numpy.core.multiarray\nfromfile",
                                  "copyreg\n_reconstructor", "numpy\ndtype.newbyteorder"])  # fmt: skip
@pytest.mark.parametrize("form", ["c{}\n(tR.", "(i{}\n.", "(c{}\no.", "c{}\n)\x81."])
def test_other_names_are_refused(name, form, tmp_path):
    said = name.replace("\n", r"\.")
    refused(
        tmp_path / "a.pkl", b"\x80\x02" + form.format(name).encode("latin1"), rf"it names {said}; expected nothing but"
    )
