"""JHMDB on a small set in its published layout: the reader, and scores computed by hand."""

import math
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import timecycle
from tests.assertions import raises_input_error
from tests.task_cases import CellFeatures, cell_frame, numbered, remove, write, write_mat
from timecycle.errors import InputError
from timecycle.evaluation.jhmdb import read_jhmdb

WIDTH, HEIGHT = 16, 8  # of a cell; five by five cells make a frame of 80 x 40
SMALL = {"side": 40, "k": 1, "progress": False}  # a cell is 8 x 8 pixels
TEA = "joint_positions/pour/tea/joint_positions.mat"


def joints() -> np.ndarray:
    """[3, 15, 2], x and y from 0: the corners of fifteen cells, which move one cell to the right and then rest."""
    j = np.arange(15)
    first = np.stack([WIDTH * (j % 4), HEIGHT * (j // 4)], axis=1).astype(float)
    later = first + np.array([WIDTH, 0])
    return np.stack([first, later, later])


def add_clip(root: Path, name: str, places: np.ndarray, extra_frames: int = 0) -> None:
    for index in range(len(places) + extra_frames):
        path = root / "Rename_Images" / name / f"{index + 1:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(cell_frame(numbered(5, 5, min(index, 1)), HEIGHT, WIDTH)).save(path)
    annotate(root, name, places)


def annotate(root: Path, name: str, places: np.ndarray) -> None:
    write_mat(root / "joint_positions" / name / "joint_positions.mat", pos_img=places.transpose(2, 1, 0) + 1)


@pytest.fixture
def jhmdb(tmp_path: Path) -> Path:
    """Two clips for testing, of two classes, and one for training without files."""
    root = tmp_path / "jhmdb"
    add_clip(root, "pour/tea", joints())
    add_clip(root, "walk/away", joints(), extra_frames=2)
    (root / "splits").mkdir()
    (root / "splits" / "pour_test_split1.txt").write_text("water.avi 1\ntea.avi 2\n")
    (root / "splits" / "walk_test_split1.txt").write_text("away.avi 2 \n\n")
    return root


def test_reads_the_test_clips_of_the_split(jhmdb: Path):
    clips = read_jhmdb(jhmdb)
    assert [clip.name for clip in clips] == ["pour/tea", "walk/away"]
    # The second has two frames more than joints.
    assert [path.name for path in clips[1].frames] == ["00001.png", "00002.png", "00003.png"]
    np.testing.assert_array_equal(clips[0].joints, joints())


def test_reads_a_list_with_paths_of_another_machine(jhmdb: Path, tmp_path: Path):
    listing = tmp_path / "testlist_split1.txt"
    listing.write_text(
        "/media/x/JHMDB/joint_positions/walk/away/joint_positions.mat /media/x/JHMDB/Rename_Images/walk/away\n"
        "/data/Rename_Images/pour/tea /data/joint_positions/pour/tea/joint_positions.mat\n"
    )
    assert [clip.name for clip in read_jhmdb(jhmdb, listing)] == ["walk/away", "pour/tea"]


def test_pck_equals_the_hand_computed_value(jhmdb: Path):
    # The box of frames 1 and 2 is 48 x 24, its diagonal 53.67, and 0.6 of it 32.20: right within 3.22 and 6.44 pixels.
    places = joints()
    places[1, 5] += [3, 4]  # 5 pixels away in one frame of two
    places[2, 6] += [0, 10]  # 10 pixels away in one
    annotate(jhmdb, "pour/tea", places)
    found = timecycle.evaluate_jhmdb(CellFeatures(), jhmdb, "crw", top=1, **SMALL)
    # Each joint has four places in two clips.
    assert found.joints[0.1] == pytest.approx([1] * 5 + [3 / 4, 3 / 4] + [1] * 8)
    assert found.joints[0.2] == pytest.approx([1] * 6 + [3 / 4] + [1] * 8)
    assert found.pck == pytest.approx({0.1: 14.5 / 15, 0.2: 14.75 / 15})


def test_a_joint_outside_the_first_frame_is_left_out(jhmdb: Path):
    places = joints()
    places[:, 14] = [-500, -500]
    for name in ("pour/tea", "walk/away"):
        annotate(jhmdb, name, places)
    found = timecycle.evaluate_jhmdb(CellFeatures(), jhmdb, "crw", top=1, **SMALL)
    assert math.isnan(found.joints[0.1][14])
    # Nor does it enlarge the box: then 5 pixels would be within 0.1.
    places[1, 5] += [3, 4]
    annotate(jhmdb, "pour/tea", places)
    found = timecycle.evaluate_jhmdb(CellFeatures(), jhmdb, "crw", top=1, **SMALL)
    assert found.pck == pytest.approx({0.1: 13.75 / 14, 0.2: 1})


def test_crw_takes_three_positions_and_others_five(jhmdb: Path):
    # Of three, the upper and the left neighbor weigh exp(-2): 0.1065 of a cell away, 1.70 pixels and 0.85 pixels, 1.90
    # together; of five the neighbors cancel out wherever they are on the grid.
    places = joints()
    places[1:, 5] += [2.5, 2.5]  # 3.54 pixels from the middle, 5.37 from where three point to
    places[1:, 6] -= [2.5, 2.5]  # 3.54 pixels, and 1.83
    for name in ("pour/tea", "walk/away"):
        annotate(jhmdb, name, places)
    three = timecycle.evaluate_jhmdb(CellFeatures(), jhmdb, "crw", **SMALL)
    five = timecycle.evaluate_jhmdb(CellFeatures(), jhmdb, "crw", top=5, **SMALL)
    assert (three.joints[0.1][5:7], five.joints[0.1][5:7]) == ((0, 1), (0, 0))
    dino = timecycle.evaluate_jhmdb(CellFeatures(), jhmdb, "dino", **SMALL)
    assert dino.joints[0.1][5:7] == (0, 0)


def test_frames_become_squares_of_320(jhmdb: Path):
    features = CellFeatures(stride=64)
    timecycle.evaluate_jhmdb(features, jhmdb, "dino", k=1, progress=False)
    assert set(features.sizes) == {(320, 320)}


WALK = "walk_test_split1.txt"


def positions(array: object):
    return lambda root: write_mat(root / TEA, pos_img=array)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (remove("."), "is not a folder; expected one in JHMDB's layout"),
        (remove("splits"), "splits names no clip for testing; expected lists <class>_test_split1"),
        (write(f"splits/{WALK}", "away.avi\n"), f"{WALK} line 1 is 'away.avi'; expected '<clip>.avi'"),
        (write(f"splits/{WALK}", "away.avi 3\n"), f"{WALK} line 1 is 'away.avi 3'; expected"),
        (remove(TEA), "tea/joint_positions.mat does not exist; expected a MATLAB"),
        (positions(np.ones((2, 14, 3))), "pos_img has shape [2, 14, 3]; expected [2, 15, frames]"),
        (positions(np.full((2, 15, 3), np.nan)), "pos_img holds a number that is not finite; expected pixels"),
        (positions(np.ones((2, 15, 4))), "annotates 4 frames; expected no more than the 3 in"),
        (remove("Rename_Images/walk"), "Rename_Images/walk/away does not exist; expected a folder"),
        (write("Rename_Images/pour/tea/00002.png", "no picture"), "tea/00002.png cannot be read as an image"),
        (
            lambda root: Image.new("RGB", (80, 48)).save(root / "Rename_Images/pour/tea/00002.png"),
            "tea/00002.png is 80 x 48; expected 80 x 40 like",
        ),
    ],
)
def test_bad_data_is_refused(jhmdb: Path, damage, sentence):
    damage(jhmdb)
    with raises_input_error(sentence):
        timecycle.evaluate_jhmdb(CellFeatures(), jhmdb, "crw", **SMALL)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "does not exist; expected a list with two paths a line"),
        ("\n", "is empty; expected two paths a line"),
        ("a/b c/d\n", "line 1 names 0 annotations; expected one path that ends in joint_positions/<class>/<clip>"),
    ],
)
def test_bad_lists_are_refused(jhmdb: Path, text, sentence):
    if text is not None:
        (jhmdb / "list.txt").write_text(text)
    with raises_input_error(f"list.txt {sentence}"):
        timecycle.evaluate_jhmdb(CellFeatures(), jhmdb, listing=jhmdb / "list.txt", **SMALL)


@pytest.mark.parametrize("name", ["..", ".hidden", "x" * 300, "a\\b", "a/b"])
def test_names_of_clips_are_single_folder_names(jhmdb: Path, name):
    (jhmdb / "splits/walk_test_split1.txt").write_text(f"{name}.avi 2\n")
    with pytest.raises(InputError, match=r"walk_test_split1\.txt line 1: the name"):
        read_jhmdb(jhmdb)
    (jhmdb / "list.txt").write_text(f"joint_positions/../{name}/joint_positions.mat x\n")
    with pytest.raises(InputError, match=r"list\.txt line 1"):
        read_jhmdb(jhmdb, jhmdb / "list.txt")


@pytest.mark.parametrize("split", [0, 4, "../1", "*"])
def test_there_are_three_splits(jhmdb: Path, split):
    with pytest.raises(InputError, match=r"split is .*; expected 1, 2 or 3"):
        read_jhmdb(jhmdb, split=split)


CELLS = np.empty((1, 1), object)
CELLS[0, 0] = np.ones((2, 15, 3))


@pytest.mark.parametrize("array", [CELLS, "text", np.ones((2, 15)) * 1j, {"a": 1}, np.ones((2, 15)) > 0])
def test_joints_are_real_numbers(jhmdb: Path, array):
    positions(array)(jhmdb)
    with raises_input_error("joint_positions.mat is no MATLAB file with a numeric array pos_img (pos_img"):
        read_jhmdb(jhmdb)


def test_deeply_nested_cells_are_not_read(jhmdb: Path):
    """A recursive reader would overflow the stack."""
    path = jhmdb / TEA
    whole = path.read_bytes()

    def element(kind: int, data: bytes) -> bytes:
        return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)

    def cell(name: bytes, inner: bytes) -> bytes:
        return element(
            14, element(6, struct.pack("<II", 1, 0)) + element(5, struct.pack("<ii", 1, 1)) + element(1, name) + inner
        )

    data = b""
    for _ in range(2000):
        data = cell(b"", data)
    path.write_bytes(whole[:128] + cell(b"pos_img", data))
    with pytest.raises(InputError, match=r"\(pos_img is cell \[1, 1\]\)"):
        read_jhmdb(jhmdb)


def test_an_annotation_is_small(jhmdb: Path):
    with (jhmdb / TEA).open("ab") as file:
        file.truncate(1 << 30)
    with pytest.raises(InputError, match="has 1073741824 bytes; expected an annotation of at most"):
        read_jhmdb(jhmdb)
