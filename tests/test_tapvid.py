"""TAP-Vid on a small set in its published layout: pickles that are read or refused, and scores computed by hand."""

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import timecycle
from tests.assertions import may_be_refused, raises_input_error
from tests.pickle_cases import Call
from tests.task_cases import CellFeatures, cell_frame, numbered
from timecycle.errors import InputError
from timecycle.evaluation import pickled
from timecycle.evaluation.tapvid import read_tapvid

# Four by eight cells of 64 x 32 pixels, which move by one column in each of four frames: an eighth of the width.
EXACT = {"k": 1, "progress": False}


def parts() -> dict[str, np.ndarray]:
    """A video and four points: two visible from the start, one from frame 1 on, one never."""
    video = np.stack([cell_frame(numbered(4, 8, right), 64, 32) for right in range(4)])
    columns, rows = np.array([1, 2, 5, 0]), np.array([1, 3, 0, 2])
    points = np.empty((4, 4, 2))
    points[..., 0] = (columns[:, None] + np.array([0, 1, 2, 3]) + 0.5) / 8
    points[..., 1] = (rows[:, None] + 0.5) / 4
    # Moved away from where the cells are: by 3 and by 6 pixels of 256.
    points[1, 2, 1] += 3 / 256
    points[1, 3, 1] += 6 / 256
    occluded = np.zeros((4, 4), bool)
    occluded[1, 0] = True
    occluded[2, 2:] = True
    occluded[3] = True
    return {"video": video, "points": points, "occluded": occluded}


class WideCells(CellFeatures):
    """Cells of a square image, twice as high as wide."""

    def __call__(self, images):
        """[B, 3, H, W] -> [B, 32, H / 64, W / 32]."""
        return super().__call__(images)[:, :, ::2]


def write(path: Path, videos: Any, version: int = 4) -> Path:
    path.write_bytes(pickle.dumps(videos, protocol=version))
    return path


@pytest.fixture
def tapvid(tmp_path: Path) -> Path:
    """A pickle as published, of one video."""
    return write(tmp_path / "tapvid_davis.pkl", {"bear": parts()})


@pytest.mark.parametrize("version", range(pickle.HIGHEST_PROTOCOL + 1))
def test_reads_pickled_arrays_of_every_protocol(tmp_path: Path, version):
    (video,) = read_tapvid(write(tmp_path / "p.pkl", {"bear": parts()}, version))
    assert video.name == "bear"
    np.testing.assert_array_equal(video.frames, parts()["video"])
    # The point that is never seen is left out.
    np.testing.assert_array_equal(video.points, parts()["points"][:3])
    np.testing.assert_array_equal(video.occluded, parts()["occluded"][:3])
    assert video.query_frames.tolist() == [0, 1, 0]


@pytest.mark.parametrize("version", range(pickle.HIGHEST_PROTOCOL + 1))
def test_reads_arrays_of_any_memory_layout(tmp_path: Path, version):
    made = parts()
    made["video"] = made["video"].transpose(2, 0, 1, 3).copy().transpose(1, 2, 0, 3)
    made["points"] = np.repeat(made["points"].astype(">f4"), 2, axis=1)[:, ::2]
    made["occluded"] = np.asfortranarray(made["occluded"])
    (video,) = read_tapvid(write(tmp_path / "p.pkl", {"bear": made}, version))
    assert type(video.frames) is np.ndarray
    np.testing.assert_array_equal(video.frames, parts()["video"])
    np.testing.assert_array_equal(video.points, parts()["points"][:3].astype(np.float32))
    np.testing.assert_array_equal(video.occluded, parts()["occluded"][:3])


@pytest.mark.parametrize("version", [2, 4, 5])
def test_reads_a_list_of_videos_without_names(tmp_path: Path, version):
    """As RGB-Stacking is published."""
    videos = [parts() for _ in range(11)]
    videos[10]["video"] = videos[10]["video"][:, ::-1]
    found = list(read_tapvid(write(tmp_path / "rgb_stacking.pkl", videos, version)))
    assert [video.name for video in found] == [str(number) for number in range(11)]
    np.testing.assert_array_equal(found[9].frames, parts()["video"])
    np.testing.assert_array_equal(found[10].frames, parts()["video"][:, ::-1])
    np.testing.assert_array_equal(found[10].points, parts()["points"][:3])


def test_reads_pickles_of_numpy_1(tmp_path: Path):
    data = pickle.dumps({"bear": parts()}, protocol=2)
    assert b"numpy._core.multiarray" in data
    path = tmp_path / "old.pkl"
    path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    (video,) = read_tapvid(path)
    np.testing.assert_array_equal(video.points, parts()["points"][:3])


def test_reads_arrays_without_pickle(tmp_path: Path):
    path = tmp_path / "points.npz"
    np.savez(path, **{f"{name}/{part}": array for name in ("bear", "dog") for part, array in parts().items()})
    first, second = read_tapvid(path)
    assert (first.name, second.name) == ("bear", "dog")
    np.testing.assert_array_equal(second.frames, parts()["video"])


@pytest.mark.parametrize("function", [os.system, eval, np.load, getattr])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, function):
    path = write(tmp_path / "bad.pkl", {"bear": Call(function, (f"touch {tmp_path / 'ran'}",))})
    with pytest.raises(InputError, match=r"bad.pkl is refused: it names \S+; expected nothing but NumPy arrays"):
        list(read_tapvid(path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (np.array([{}, None]), "it holds an array of type 'O8'"),
        (np.zeros(2, [("x", "f8")]), "it holds an array of type 'V8'"),
        (np.zeros(2, "M8[s]"), "it holds an array of type 'M8'"),
        (np.array(["a"]), "it holds an array of type 'U1'"),
        (np.float64(1), "it names numpy._core.multiarray.scalar"),
        (np.ma.zeros(2), "it names numpy.ma.core._mareconstruct"),
    ],
)
@pytest.mark.parametrize("version", [2, 5])
def test_arrays_of_anything_but_numbers_are_refused(tmp_path: Path, points, reason, version):
    path = write(tmp_path / "bad.pkl", {"bear": parts() | {"points": points}}, version)
    with raises_input_error(f"{path} is refused: {reason}; expected nothing but NumPy arrays of numbers"):
        list(read_tapvid(path))


ARRAY = (np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"))
FLOAT = (np.dtype, ("f8", False, True))


@pytest.mark.parametrize(
    "forged",
    [
        # Memory beyond the array's own: more elements than bytes, negative sizes with the right product, items longer
        # than the dtype's, and bytes taken for pointers.
        Call(*ARRAY, (1, (10**6,), np.dtype("u1"), False, b"abc")),
        Call(*ARRAY, (1, (-1, -3), np.dtype("u1"), False, b"abc")),
        Call(*ARRAY, (1, (True,), np.dtype("u1"), False, b"a")),
        Call(*ARRAY, (1, (1,), np.dtype("O"), False, [1])),
        Call(*ARRAY, (1, (1,), Call(*FLOAT, (3, "<", None, None, None, 64, 8, 0)), False, b"12345678")),
        Call(np.dtype, ("V8", False, True), (3, "|", None, ("x",), {"x": (np.dtype("O"), 0)}, 8, 1, 0)),
        Call(*FLOAT, (4, "<", (np.dtype("O"), (1,)), None, None, -1, -1, 0)),
        Call(np.ndarray, ((10**3,),)),
        Call(np.dtype, ([("x", "O")], False, True)),
    ],
)
@pytest.mark.parametrize("version", [2, 5])
def test_states_that_numpy_does_not_write_are_refused(tmp_path: Path, forged, version):
    path = write(tmp_path / "bad.pkl", {"bear": forged}, version)
    with raises_input_error(match=r"bad.pkl is (refused: it holds|damaged)"):
        list(read_tapvid(path))


def test_a_pickle_does_not_change_how_others_are_read(tmp_path: Path):
    """BUILD of protocol 2 sets attributes of any object, functions included."""
    attributes = pickle.dumps((None, {"__defaults__": ("", ""), "__name__": "changed"}), protocol=2)[2:-1]
    (tmp_path / "bad.pkl").write_bytes(b"\x80\x02c_codecs\nencode\n" + attributes + b"b.")
    with pytest.raises(InputError, match=r"bad\.pkl is refused: it gives a state to a function"):
        list(read_tapvid(tmp_path / "bad.pkl"))
    assert pickled.PlainUnpickler.encoded.__name__ == "encoded"
    assert pickled.PlainUnpickler.encoded.__defaults__ is None


def test_scores_equal_the_hand_computed_values(tapvid: Path):
    # Eight places count, 3 + 2 + 3; six are visible; all are said to be. Of the six, four are exactly where the cells
    # are, one is 3 pixels away and one 6.
    found = timecycle.evaluate_tapvid(WideCells(stride=32), tapvid, "dino", **EXACT).mean
    assert found.occlusion_accuracy == pytest.approx(6 / 8)
    assert found.within == pytest.approx({1: 4 / 6, 2: 4 / 6, 4: 5 / 6, 8: 1, 16: 1})
    assert found.average_within == pytest.approx(5 / 6)
    assert found.jaccard == pytest.approx({1: 4 / 10, 2: 4 / 10, 4: 5 / 9, 8: 6 / 8, 16: 6 / 8})
    assert found.average_jaccard == pytest.approx((0.8 + 5 / 9 + 1.5) / 5)


def test_videos_are_averaged(tmp_path: Path):
    still = parts()
    still["occluded"][1:] = True  # leaves one point, which is always found
    path = write(tmp_path / "two.pkl", {"bear": parts(), "dog": still})
    found = timecycle.evaluate_tapvid(WideCells(stride=32), path, "dino", **EXACT)
    assert found.videos["dog"].average_jaccard == 1
    assert found.mean.average_within == pytest.approx((5 / 6 + 1) / 2)
    unnamed = timecycle.evaluate_tapvid(
        WideCells(stride=32), write(tmp_path / "list.pkl", [parts(), still]), "dino", **EXACT
    )
    assert unnamed.mean == found.mean
    assert unnamed.videos == {"0": found.videos["bear"], "1": found.videos["dog"]}


def test_a_point_is_occluded_below_a_share_of_its_first_peak(tapvid: Path):
    # The maps keep their first peak of 1: with a share below 1 nothing is occluded, above it everything.
    features = WideCells(stride=32)
    below = timecycle.evaluate_tapvid(features, tapvid, "dino", occluded_below=0.99, **EXACT).mean
    above = timecycle.evaluate_tapvid(features, tapvid, "dino", occluded_below=1.01, **EXACT).mean
    assert (below.occlusion_accuracy, above.occlusion_accuracy) == (6 / 8, 2 / 8)
    assert (above.average_jaccard, above.average_within) == (0, below.average_within)


def test_frames_become_squares_of_256_and_are_encoded_once_per_query_frame(tapvid: Path):
    features = WideCells(stride=32)
    timecycle.evaluate_tapvid(features, tapvid, "dino", **EXACT)
    assert features.sizes == [(256, 256)] * (4 + 3)  # four frames for the points of frame 0, three for that of frame 1
    larger = WideCells(stride=64)
    found = timecycle.evaluate_tapvid(larger, tapvid, "dino", side=512, **EXACT).mean
    assert set(larger.sizes) == {(512, 512)}
    assert found.average_within == pytest.approx(5 / 6)  # distances stay those of 256


def changed(part: str, change) -> dict[str, Any]:
    made: dict[str, Any] = parts()
    made[part] = change(made[part])
    return {"bear": made}


@pytest.mark.parametrize(
    ("videos", "sentence"),
    [
        (3, "bad.pkl holds a int; expected {video: {'video', 'points', 'occluded'}}, or a list without names"),
        (np.zeros(3), "bad.pkl holds a PickledArray; expected {video:"),
        ({}, "bad.pkl holds no videos; expected {video:"),
        ([], "bad.pkl holds no videos; expected {video:"),
        ([parts(), 1], "bad.pkl: 1 is a int; expected video, points, occluded"),
        ([{"video": [b"jpeg"]}], "bad.pkl: 0 has no array 'video'; expected video, points, occluded"),
        ({"bear": 3}, "bad.pkl: bear is a int; expected video, points, occluded"),
        ({"bear": {"video": parts()["video"]}}, "bad.pkl: bear has no array 'points'; expected video, points, occ"),
        (changed("video", lambda a: a.astype(float)), "video of bear is float64 [4, 256, 256, 3]; expected uint8 [T,"),
        (changed("video", list), "bad.pkl: bear has no array 'video'"),
        (changed("points", lambda a: a[:, :3]), "points of bear is float64 [4, 3, 2]; expected float [N, 4, 2]"),
        (changed("points", lambda a: a * np.nan), "points of bear holds a visible point that is not finite; expected"),
        (changed("occluded", lambda a: a[1:]), "occluded of bear is bool [3, 4]; expected bool [4, 4]"),
        (changed("occluded", lambda a: a.astype(float)), "occluded of bear is float64 [4, 4]; expected bool [4, 4]"),
    ],
)
def test_bad_arrays_are_refused(tmp_path: Path, videos, sentence):
    path = write(tmp_path / "bad.pkl", videos)
    with raises_input_error(sentence):
        timecycle.evaluate_tapvid(WideCells(stride=32), path, **EXACT)


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_truncated_pickles_are_refused(tapvid: Path, cut):
    tapvid.write_bytes(tapvid.read_bytes()[:cut])
    with raises_input_error(match=r"tapvid_davis.pkl is (damaged|refused)"):
        list(read_tapvid(tapvid))


def test_an_empty_npz_is_refused(tmp_path: Path):
    np.savez(tmp_path / "bad.npz")
    with pytest.raises(InputError, match=r"bad.npz is empty; expected arrays named <video>/video"):
        list(read_tapvid(tmp_path / "bad.npz"))


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"none.pkl does not exist; expected a .pkl or .npz"):
        timecycle.evaluate_tapvid(CellFeatures(), tmp_path / "none.pkl")


@pytest.mark.parametrize("name", ["..", "a/b", "", ".a", "x" * 300, "a\nb", "a\\b"])
@pytest.mark.parametrize("form", ["pkl", "npz"])
def test_names_of_videos_are_single_folder_names(tmp_path: Path, form, name):
    path = tmp_path / f"points.{form}"
    if form == "pkl":
        write(path, {name: parts()})
    else:
        np.savez(path, **{f"{name}/{part}": array for part, array in parts().items()})
    with raises_input_error(match=rf"points\.{form}: the name"):
        list(read_tapvid(path))


@pytest.mark.parametrize("name", [1, b"bear", None, ("a", 1)])
def test_names_of_videos_are_text(tmp_path: Path, name):
    with pytest.raises(InputError, match=r"points\.pkl names a video by a \w+; expected text"):
        list(read_tapvid(write(tmp_path / "points.pkl", {name: parts()})))


def npz(path: Path, **changed: bytes) -> Path:
    """An .npz of a video with some records replaced; checksums are valid."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for part, array in parts().items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(f"bear/{part}.npy", changed.get(part, buffer.getvalue()))
    return path


def header(descr: object, shape: object) -> bytes:
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}}}".encode()
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (header("|u1", (10**12, 1, 1, 3)) + bytes(9), r"is refused: it holds 9 bytes for an array \[1000000000000, 1"),
        (header("|u1", (-1, -3)) + bytes(3), "is refused: it holds an array that NumPy has not written"),
        (header("|O", (1,)) + b"cos\nsystem\n(tR.", "is refused: it holds an array of type 'O'"),
        (header([("a", "|u1")], (1,)) + bytes(1), "is refused: it holds an array of type 'V1'"),
        (header("<U4", (1,)) + bytes(16), "is refused: it holds an array of type 'U4'"),
        (header("|u1", "(" * 3000), "is damaged"),
        (header("|u1", "9" * 5000), "is damaged"),
        (b"\x93NUMPY\3\0", r"is damaged"),
        (b"", "is damaged"),
        (header("|u1", (1 << 25,)) + bytes(1 << 25), r"is refused: it holds \d+ bytes that are said to become \d+"),
    ],
)
def test_bad_records_of_an_npz_are_refused(tmp_path: Path, record, said):
    path = npz(tmp_path / "points.npz")
    assert len(list(read_tapvid(path))) == 1
    with raises_input_error(match=said):
        list(read_tapvid(npz(path, video=record)))


def test_damaged_npz_are_read_or_refused(tmp_path: Path):
    path = npz(tmp_path / "points.npz")
    data = path.read_bytes()
    for at in [*range(0, 60), *range(len(data) - 60, len(data))]:
        for bit in (1, 16, 128):
            path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
            with may_be_refused():
                list(read_tapvid(path))
