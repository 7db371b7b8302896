"""VIP on a small set in its published layout: the reader, and a score computed by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import timecycle
from tests.assertions import raises_input_error
from tests.task_cases import CellFeatures, cell_frame, remove, write
from timecycle.data.masks import write_mask
from timecycle.evaluation.vip import read_vip

# Features of stride 4 that match exactly, and masks of whole positions.
EXACT = {"k": 1, "side": 32, "upsample": "nearest", "progress": False}
HAT, ARM = 1, 14


def add_video(root: Path, name: str, frames: list[np.ndarray], parts: list[np.ndarray | None]) -> None:
    images, masks = root / "Images" / name, root / "Annotations" / "Category_ids" / name
    images.mkdir(parents=True)
    for index, (ids, mask) in enumerate(zip(frames, parts, strict=True)):
        Image.fromarray(cell_frame(ids, 8, 8)).save(images / f"{25 * index:012d}.jpg", quality=95)
        if mask is not None:
            write_mask(masks / f"{25 * index:012d}.png", mask)


def half(columns: int, id_: int) -> np.ndarray:
    """A 32 x 32 mask with a part in its first columns."""
    mask = np.zeros((32, 32), np.uint8)
    mask[:, :columns] = id_
    return mask


@pytest.fixture
def vip(tmp_path: Path) -> Path:
    """Two videos: a hat that shrinks from 16 columns to 8, annotated as if it had not, and an arm at rest.

    In the first frame the hat is annotated 2 columns wider, which is lost at stride 4; in the last frame there is an
    arm beside it.
    """
    root = tmp_path / "VIP_Fine"
    wide, narrow = np.array([[5, 5, 9, 9]] * 4), np.array([[5, 9, 9, 9]] * 4)
    stale = half(16, HAT)
    stale[:8, 8:16] = 255  # void, where prediction and annotation differ
    stale[:, 16:] = ARM
    add_video(root, "videos1", [wide, wide, narrow], [half(18, HAT), None, stale])
    add_video(root, "videos7", [narrow, narrow], [half(8, ARM), half(8, ARM)])
    (root / "lists").mkdir()
    (root / "lists" / "val_videos.txt").write_text("/data/VIP_Fine/videos/videos1\nvideos7\n\n")
    return root


def test_reads_the_videos_of_the_list(vip: Path):
    first, second = read_vip(vip)
    assert (first.name, second.name) == ("videos1", "videos7")
    assert [path.name for path in first.frames] == [f"{25 * i:012d}.jpg" for i in range(3)]
    assert [path and path.name for path in first.annotations] == ["000000000000.png", None, "000000000050.png"]


def test_mean_iou_equals_the_hand_computed_value(vip: Path):
    found = timecycle.evaluate_vip(CellFeatures(stride=4), vip, "dino", **EXACT)
    # First frame: 576 pixels of the hat, 448 of the background, given. Last: of 448 pixels of the hat 256 are found,
    # and none of 512 of the arm; what is not found is background. The second video: twice 256 of the arm and 768, all
    # found.
    assert found.iou["hat"] == pytest.approx((576 + 256) / (576 + 448))
    assert found.iou["right-arm"] == pytest.approx(512 / (512 + 512))
    assert found.iou["background"] == pytest.approx((448 + 1536) / (448 + 1536 + 192 + 512))
    assert sum(not math.isnan(value) for value in found.iou.values()) == 3
    assert found.mean_iou == pytest.approx((832 / 1024 + 1 / 2 + 1984 / 2688) / 3)


def test_vip_under_every_family_of_protocols(vip: Path):
    for name in ("timecycle", "crw", "vfs", "dinov3"):
        found = timecycle.evaluate_vip(CellFeatures(stride=4), vip, name, side=32, k=1, progress=False)
        assert found.mean_iou > 0.6, name


def test_frames_become_squares_of_560(vip: Path):
    features = CellFeatures(stride=70)
    timecycle.evaluate_vip(features, vip, "dino", progress=False)
    assert set(features.sizes) == {(560, 560)}


def test_other_folders_can_be_named(vip: Path):
    (vip / "Annotations").rename(vip / "adjusted_Annotations")
    (vip / "lists" / "val_videos.txt").rename(vip / "few.txt")
    named = {"listing": "few.txt", "annotations": "adjusted_Annotations/Category_ids"}
    found = timecycle.evaluate_vip(CellFeatures(stride=4), vip, "dino", **named, **EXACT)
    assert found.iou["hat"] == pytest.approx(832 / 1024)


MASKS, FIRST, LAST = "Annotations/Category_ids/videos1", "000000000000.png", "000000000050.png"


def put(name: str, mask: np.ndarray):
    return lambda root: write_mask(root / MASKS / name, mask)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (remove("."), "is not a folder; expected one in VIP's layout"),
        (remove("lists/val_videos.txt"), "val_videos.txt does not exist; expected one video a line"),
        (write("lists/val_videos.txt", "\n"), "val_videos.txt is empty; expected one video a line"),
        (remove("Images/videos7"), "Images/videos7 does not exist; expected a folder of frames"),
        (remove("Annotations"), "videos1 does not exist; expected a folder of annotations"),
        (remove(f"{MASKS}/{FIRST}"), f"{FIRST} does not exist; expected the first frame's annotation"),
        (put("1.png", half(8, 1)), "videos1/1.png has no frame in"),
        (put(LAST, half(8, 20)), f"{LAST} holds id 20; expected 0 to 19, or 255 for void"),
        (put(FIRST, half(8, 20)), f"{FIRST} holds id 20; expected 0 to 19, or 255 for void"),
        (put(LAST, half(8, 1)[:8]), f"{LAST} is 32 x 8; expected 32 x 32 like its frame"),
    ],
)
def test_bad_data_is_refused(vip: Path, damage, sentence):
    damage(vip)
    with raises_input_error(sentence):
        timecycle.evaluate_vip(CellFeatures(stride=4), vip, "dino", **EXACT)


@pytest.mark.parametrize("name", ["..", "a/..", ".", ".hidden", "x" * 300, "a\\b", "a\x01"])
def test_names_in_the_list_are_single_folder_names(tmp_path: Path, name):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/val_videos.txt").write_text(name)
    with raises_input_error(match=r"val_videos\.txt: the name"):
        read_vip(tmp_path)
