"""Annotations of the tasks: TAP-Vid's pickles and .npz, JHMDB's MATLAB files, BADJA's JSON, VIP's folders."""

import functools
import io
import json
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.fuzz.damage import NUMBERS, damaged
from tests.fuzz.targets.checkpoints import CODES, archive, records
from tests.fuzz.targets.json_files import changed, json_bytes
from tests.pickle_cases import Call
from timecycle.evaluation.badja import read_badja
from timecycle.evaluation.jhmdb import read_jhmdb
from timecycle.evaluation.tapvid import read_tapvid
from timecycle.evaluation.vip import read_vip

scipy_io = pytest.importorskip("scipy.io", reason="SciPy is not installed")


def video(rng: random.Random) -> dict[str, Any]:
    """A small video of TAP-Vid's, in some of its arrays' types and orders."""
    numbers = np.random.default_rng(rng.randrange(1 << 32))
    points = numbers.random((3, 2, 2)).astype(rng.choice(["f4", "f8", "f2", ">f8"]))
    frames = numbers.integers(0, 256, (2, 3, 4, 3), np.uint8)
    occluded = numbers.random((3, 2)) < 0.3
    order = rng.choice(["C", "F"])
    return {
        name: np.array(a, order=order) for name, a in (("video", frames), ("points", points), ("occluded", occluded))
    }


def check_tapvid(path: Path, data: bytes) -> None:
    """Write a file and read its videos: dtypes and shapes must be right, visible points finite."""
    path.write_bytes(data)
    for found in read_tapvid(path):
        assert found.frames.dtype == np.uint8
        assert found.frames.ndim == 4
        assert found.points.dtype == np.float64
        assert found.points.shape == (*found.occluded.shape, 2)
        assert np.isfinite(found.points[~found.occluded]).all()
        assert "/" not in found.name
        int(found.frames.sum())  # every value is there


def case_pickle(rng: random.Random, folder: Path) -> None:
    """A pickle with bytes changed, or opcodes replaced or inserted."""
    content: Any = {"bear": video(rng), "dog": video(rng)} if rng.random() < 0.7 else [video(rng)]
    if rng.random() < 0.3:
        content = changed(rng, content)
    data = bytearray(pickle.dumps(content, protocol=rng.randrange(6)))
    if rng.random() < 0.5:
        data = bytearray(damaged(rng, bytes(data)))
    else:
        for _ in range(rng.randrange(4)):
            at = rng.randrange(len(data))
            data[at:at] = rng.choice(
                [rng.choice(CODES), b"\x85" * 3000 + b"K\x01s", b"\x8e" + b"\xff" * 7 + b"\x7f",
                 b"\x96" + b"\0" * 5 + b"\1\0\0", b"\x94h\0",
                 b"cnumpy\ndtype\n(X\x02\0\0\0O8\x89\x88tR", b"cbuiltins\neval\n", b"0", b"2", b"l" + b"9" * 5000]
            )  # fmt: skip
    check_tapvid(folder / "points.pkl", data)


def case_forged_arrays(rng: random.Random, folder: Path) -> None:
    """Arrays and dtypes with states that NumPy does not write."""
    number = functools.partial(rng.choice, [0, 1, 2, 3, 8, -1, True, None, *NUMBERS])
    text = rng.choice(["u1", "f8", "b1", "O8", "V8", "U4", "S8", "M8", "f16", "", "u1,f4", 8, None, ("u1", (2,))])
    dtype = Call(np.dtype, (text, False, True))
    if rng.random() < 0.7:
        order = rng.choice(["|", "<", ">", "=", "x", None, 3])
        state = [3, order, None, None, None, -1, -1, 0]
        if rng.random() < 0.5:
            state[rng.randrange(8)] = rng.choice([number(), ("a",), {"a": 1}, np.dtype("u1"), 63])
        dtype = Call(np.dtype, (text, False, True), tuple(state[: rng.choice([8, 8, 8, 9, 3])]))
    shape = tuple(number() for _ in range(rng.choice([0, 1, 2, 4, 70])))
    data = rng.choice([b"", b"abcdefgh", bytearray(8), [1, 2], None, "abc"])
    if rng.random() < 0.5:
        state = (1, shape, dtype, rng.random() < 0.5, data)
        array = Call(np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), state)
    else:
        array = Call(np._core.numeric._frombuffer, (data, dtype, shape, rng.choice(["C", "F", "K", "A", 3]), number()))
    content = {"bear": video(rng) | {"points": array}}
    check_tapvid(folder / "points.pkl", pickle.dumps(content, protocol=rng.randrange(6)))


def case_npz(rng: random.Random, folder: Path) -> None:
    """An .npz with damaged bytes, or damaged records with valid checksums."""
    buffer = io.BytesIO()
    save = rng.choice([np.savez, np.savez_compressed])
    name = rng.choice(["bear", "bear", "bear", "bear", "a/b", "..", ""])
    save(buffer, **{f"{name}/{part}": array for part, array in video(rng).items()})
    data = buffer.getvalue()
    if rng.random() < 0.5:
        data = damaged(rng, data)
    else:
        parts = records(data)
        name = rng.choice(list(parts))
        if rng.random() < 0.3:
            old, new = rng.choice(
                [(b"|u1", b"|O8"), (b"(2,", b"(9" + b"9" * 17 + b","), (b"'C'", b"((("), (b"u1", b"V9")]
            )
            parts[name] = parts[name].replace(old, new)
        else:
            parts[name] = damaged(rng, parts[name])
        methods = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2]
        data = archive(parts, rng.choice(methods))
    check_tapvid(folder / "points.npz", data)


@functools.cache
def matlab_files() -> list[bytes]:
    """JHMDB's annotation and other values, in MATLAB's file formats 4 and 5."""
    joints = np.random.default_rng(0).random((2, 15, 3))
    cells = np.empty((1, 2), object)
    cells[:] = [[np.ones(2), "a"]]
    found = []
    for value in (joints, joints[:, :, 0], joints.astype(np.uint16), {"a": joints}, cells, "text", joints[0] * 1j):
        for options in ({}, {"do_compression": True}, {"format": "4"}):
            matrix = isinstance(value, np.ndarray) and value.ndim == 2 and value is not cells
            if options == {"format": "4"} and not matrix:
                continue
            buffer = io.BytesIO()
            scipy_io.savemat(buffer, {"pos_img": value, "scale": np.ones(3)}, **options)
            found.append(buffer.getvalue())
    return found


def case_matlab(rng: random.Random, folder: Path) -> None:
    """A MATLAB file of joints, damaged or with other content."""
    files = matlab_files()
    data = rng.choice([*files[:2] * 3, *files])
    clip = folder / "joint_positions/pour/tea"
    clip.mkdir(parents=True)
    (clip / "joint_positions.mat").write_bytes(damaged(rng, data, 400) if rng.random() < 0.9 else data)
    frames = folder / "Rename_Images/pour/tea"
    frames.mkdir(parents=True)
    for number in range(1, 4):
        (frames / f"{number:05d}.png").touch()
    (folder / "splits").mkdir()
    (folder / "splits/pour_test_split1.txt").write_text("tea.avi 2\n")
    (found,) = read_jhmdb(folder)
    assert found.joints.dtype == np.float64
    assert found.joints.shape == (len(found.frames), 15, 2)
    assert np.isfinite(found.joints).all()


def case_badja(rng: random.Random, folder: Path) -> None:
    """BADJA's annotation, damaged or with other values."""
    entry = {
        "image_path": "images/00002.jpg", "segmentation_path": "masks/00002.png", "joints": [[1, 2.5]] * 37,
        "visibility": [True] * 37,
    }  # fmt: skip
    content = [entry, entry | {"image_path": "images/00010.jpg"}]
    odd = rng.choice(["..", "/etc/passwd", "images/../../a.jpg", "x" * 300, "\0", 3, None, "", "images/00002.jpg"])
    if rng.random() < 0.3:
        content[1] |= {rng.choice(["image_path", "segmentation_path"]): odd}
    (folder / "joint_annotations").mkdir()
    (folder / "joint_annotations/bear.json").write_bytes(json_bytes(rng, content))
    (folder / "images").mkdir()
    for number in (2, 9, 10):
        (folder / f"images/{number:05d}.jpg").touch()
    (found,) = read_badja(folder)
    assert all(path.parent == folder / "images" for path in found.frames)
    assert all(folder in path.parents and ".." not in path.parts for path in found.segmentations)
    assert list(found.annotated) == sorted(set(found.annotated))
    assert len(found.annotated) == len(found.joints) == len(found.visible)
    assert np.isfinite(found.joints).all()


def case_vip(rng: random.Random, folder: Path) -> None:
    """VIP's folders with files missing, duplicated or renamed."""
    for part, suffix in (("Images", "jpg"), ("Annotations/Category_ids", "png")):
        (folder / part / "a").mkdir(parents=True)
        for number in (1, 2, 10):
            if rng.random() < 0.9:
                name = rng.choice([f"{number}.{suffix}"] * 9 + [f"{number}.png", "x.jpg", "9" * 250 + ".jpg", ".a.png"])
                Image.new("L", (3, 2)).save(folder / part / "a" / name)
    (folder / "lists").mkdir()
    (folder / "lists/val_videos.txt").write_text(rng.choice(["a", "x/a/\na", "a\nb", json.dumps("a")]))
    for found in read_vip(folder):
        assert len(found.frames) == len(found.annotations)
        assert found.annotations[0] is not None
