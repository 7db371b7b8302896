"""BADJA on a small set in its published layout: the reader, and scores computed by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import timecycle
from tests.assertions import raises_input_error
from tests.task_cases import CellFeatures, cell_frame, empty, numbered, remove, write
from timecycle.data.masks import write_mask
from timecycle.errors import InputError
from timecycle.evaluation.badja import animal_area, read_badja

NATIVE = {"k": 1, "resize": "native", "top": 1, "progress": False}
ROWS = COLUMNS = 5  # of cells of 8 x 8 pixels; each frame moves them by one column


def middle(column: int, row: int, right: float = 0, down: float = 0) -> np.ndarray:
    """X and y of a cell's center, or of a point beside it."""
    return np.array([8 * column + 3.5 + right, 8 * row + 3.5 + down])


def entry(name: str, index: int, joints: dict[int, np.ndarray], folder: str = "Full-Resolution") -> dict:
    """An annotated frame; joints: index -> x and y. The others are hidden, at the corner."""
    places = np.zeros((37, 2))
    for joint, place in joints.items():
        places[joint] = place[::-1]
    return {
        "image_path": f"DAVIS/JPEGImages/{folder}/{name}/{index:05d}.jpg",
        "segmentation_path": f"DAVIS/Annotations/{folder}/{name}/{index:05d}.png",
        "joints": places.tolist(),
        "visibility": [joint in joints for joint in range(37)],
    }


def add_video(root: Path, name: str, entries: list[dict], frames: int = 4) -> None:
    for index in range(frames):
        path = root / f"DAVIS/JPEGImages/Full-Resolution/{name}/{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(cell_frame(numbered(ROWS, COLUMNS, index), 8, 8)).save(path, quality=95)
    animal = np.zeros((40, 40), np.uint8)
    animal[:10, :10] = 1  # an area of 100: joints are found within 2 pixels
    animal[20:, :] = 2  # its rider
    for one in entries:
        write_mask(root / one["segmentation_path"], animal)
    annotations = root / "joint_annotations" / f"{name}.json"
    annotations.parent.mkdir(exist_ok=True)
    annotations.write_text(json.dumps(entries))


@pytest.fixture
def badja(tmp_path: Path) -> Path:
    """Two animals, and the annotations of a third whose frames are missing."""
    root = tmp_path / "badja"
    # Frame 1 is not annotated; frame 3 comes after the last that is. Joint 34, the chin, is none of the twenty.
    start = {8: middle(0, 1), 9: middle(1, 2), 36: middle(2, 3), 34: middle(0, 0)}
    end = {8: middle(2, 1), 9: middle(3, 2, 0, 1.9), 36: middle(4, 3, 2, 0), 34: middle(0, 0), 10: middle(2, 4)}
    add_video(root, "bear", [entry("bear", 2, end), entry("bear", 0, start)])
    add_video(root, "dog", [entry("dog", 1, {20: middle(0, 0)}), entry("dog", 2, {20: middle(1, 0)})])
    (root / "joint_annotations" / "tiger.json").write_text(json.dumps([entry("tiger", 0, start)]))
    return root


def test_reads_frames_between_the_annotated_ones(badja: Path):
    bear, dog = read_badja(badja)
    assert (bear.name, bear.annotated) == ("bear", (0, 2))
    assert [path.name for path in bear.frames] == ["00000.jpg", "00001.jpg", "00002.jpg"]
    assert (dog.annotated, [path.name for path in dog.frames]) == ((0, 1), ["00001.jpg", "00002.jpg"])
    assert bear.joints.shape == (2, 20, 2)
    np.testing.assert_array_equal(bear.joints[0, :2], [middle(0, 1), middle(1, 2)])
    assert np.flatnonzero(bear.visible[0]).tolist() == [0, 1, 19]
    assert [path.name for path in bear.segmentations] == ["00000.png", "00002.png"]


def test_pck_equals_the_hand_computed_value(badja: Path):
    # The bear: exactly there, 1.9 pixels away, and 2 pixels away, which is not less than 2.
    found = timecycle.evaluate_badja(CellFeatures(), badja, "dino", **NATIVE)
    assert found.videos == pytest.approx({"bear": 2 / 3, "dog": 1})
    assert found.pck == pytest.approx(5 / 6)
    only = timecycle.evaluate_badja(CellFeatures(), badja, "dino", videos=["bear"], **NATIVE)
    assert only.pck == pytest.approx(2 / 3)


def test_joints_that_are_hidden_at_first(badja: Path):
    # Joint 10 is annotated at the corner while hidden, and is far from there once visible.
    found = timecycle.evaluate_badja(CellFeatures(), badja, "dino", hidden_starts=True, **NATIVE)
    assert found.videos["bear"] == pytest.approx(2 / 4)


def test_places_between_positions_are_kept(badja: Path):
    # A pixel right of a center: an eighth of the way to the next position, before the motion and after it.
    start, end = {8: middle(0, 1, 1, 2)}, {8: middle(2, 1, 1, 2 + 1.99)}
    add_video(badja, "bear", [entry("bear", 0, start), entry("bear", 2, end)])
    options = NATIVE | {"top": 5, "videos": ["bear"]}
    assert timecycle.evaluate_badja(CellFeatures(), badja, "dino", **options).pck == 1
    end[8][1] += 0.02
    add_video(badja, "bear", [entry("bear", 0, start), entry("bear", 2, end)])
    assert timecycle.evaluate_badja(CellFeatures(), badja, "dino", **options).pck == 0


def test_the_area_is_the_animals_at_the_size_of_the_frame(badja: Path):
    path = badja / "DAVIS/Annotations/Full-Resolution/bear/00000.png"
    assert animal_area(path, (40, 40)) == 100
    assert animal_area(path, (80, 80)) == 400
    Image.fromarray(np.full((4, 4, 3), 255, np.uint8)).save(path)
    assert animal_area(path, (4, 4)) == 16


ANNOTATIONS = "joint_annotations/bear.json"
BEAR = "DAVIS/{}/Full-Resolution/bear/00002.{}"


def rewrite(change):
    """Damage to the bear's annotations: `change` edits their list, or returns another."""

    def damage(root: Path) -> None:
        entries = json.loads((root / ANNOTATIONS).read_text())
        (root / ANNOTATIONS).write_text(json.dumps(change(entries) or entries))

    return damage


def update(**values):
    return rewrite(lambda entries: entries[0].update(values))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (empty("joint_annotations"), "joint_annotations holds no joint annot"),
        (write(ANNOTATIONS, "{"), "bear.json is damaged or not JSON (Expecting property name"),
        (write(ANNOTATIONS, "[]"), "bear.json is empty; expected an object for"),
        (
            rewrite(lambda e: e[0].pop("visibility") and None),
            "bear.json cannot be read (KeyError: 'visibility'); expec",
        ),
        (rewrite(lambda e: e[0]["joints"].pop() and None), "joints of 00002.jpg are [36, 2]; expected finite [37, 2]"),
        (update(visibility=[1] * 37), "visibility of 00002.jpg is int64 [37]; expected bool [37]"),
        (rewrite(lambda e: [e[1] | {"visibility": [False] * 37}]), "video bear shows no joint in"),
        (remove(BEAR.format("JPEGImages", "jpg")), "bear/00002.jpg does not exist; expected the frame that"),
        (remove(BEAR.format("Annotations", "png")), "bear/00002.png does not exist; expected an image there"),
        (update(joints=[[10**400, 0]] * 37), "cannot be read (OverflowError"),
        (update(joints=[["a", 0]] * 37), "cannot be read (ValueError"),
        (update(joints={}), "cannot be read (TypeError"),
        (update(visibility=["a" * 10**6] * 37), "visibility of 00002.jpg is float64 [37]; expected bool"),
        (update(visibility=[[True]] * 37), "visibility of 00002.jpg is float64 [37]; expected bool"),
        (update(visibility=None), "cannot be read (TypeError"),
        (rewrite(lambda entries: entries.append(entries[0])), "00002.jpg twice"),
    ],
)
def test_bad_data_is_refused(badja: Path, damage, sentence):
    damage(badja)
    with raises_input_error(sentence):
        timecycle.evaluate_badja(CellFeatures(), badja, "dino", **NATIVE)


def test_unknown_videos_are_refused(badja: Path):
    with pytest.raises(InputError, match=r"video cat is not in .*joint_annotations; expected some of bear, dog, tiger"):
        timecycle.evaluate_badja(CellFeatures(), badja, videos=["cat"])


@pytest.mark.parametrize(
    "stored", ["../a.jpg", "/etc/passwd", "DAVIS/../../a.jpg", "", "x" * 300, "a\x00b", "a\nb", "a\\b", ".a"]
)
@pytest.mark.parametrize("key", ["image_path", "segmentation_path"])
def test_paths_in_annotations_stay_below_the_folder(badja: Path, key, stored):
    update(**{key: stored})(badja)
    with raises_input_error("bear.json: the name"):
        timecycle.evaluate_badja(CellFeatures(), badja, "dino", **NATIVE)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 10**5,
        b"9" * 5000,
        b"\xff\xfe[",
        b"NaN",
        b"null",
        b"3",
        b'"a"',
        b"{}",
        b"[3]",
        b"[null]",
        b'[{"joints": []}]',
    ],
)
def test_other_json_is_refused(badja: Path, content):
    (badja / ANNOTATIONS).write_bytes(content)
    with raises_input_error(match=r"bear\.json (is damaged or not JSON|holds a|cannot be read)"):
        timecycle.evaluate_badja(CellFeatures(), badja, "dino", **NATIVE)
