"""VIP in its published layout, made small: the reader, and a score worked out by hand."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import timecycle
from tests.task_cases import CellFeatures, cell_frame
from timecycle.data.masks import write_mask
from timecycle.errors import InputError
from timecycle.evaluation.vip import read_vip

# Positions of four pixels, found again without fail, and masks of whole positions.
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
    """A 32 x 32 mask with a part in the leading columns."""
    mask = np.zeros((32, 32), np.uint8)
    mask[:, :columns] = id_
    return mask


@pytest.fixture
def vip(tmp_path: Path) -> Path:
    """Two videos: a hat that shrinks from 16 columns to 8, annotated as if it had not, and an arm at rest.

    The hat is annotated 2 columns wider in the first frame, which positions of four pixels cannot carry, and in the
    last frame there is an arm beside it.
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


def test_mean_iou_worked_out_by_hand(vip: Path):
    found = timecycle.evaluate_vip(CellFeatures(stride=4), vip, "dino", **EXACT)
    # First frame: 576 pixels of the hat, 448 of the background, given. Last: of 448 pixels of the hat 256 are found,
    # and none of 512 of the arm; what is not found is background. The second video: twice 256 of the arm and 768, all
    # found.
    assert found.iou["hat"] == pytest.approx((576 + 256) / (576 + 448))
    assert found.iou["right-arm"] == pytest.approx(512 / (512 + 512))
    assert found.iou["background"] == pytest.approx((448 + 1536) / (448 + 1536 + 192 + 512))
    assert sum(not math.isnan(value) for value in found.iou.values()) == 3
    assert found.mean_iou == pytest.approx((832 / 1024 + 1 / 2 + 1984 / 2688) / 3)


def test_every_family_of_protocols_serves(vip: Path):
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


def put(name: str, mask: np.ndarray):
    return lambda root: write_mask(root / "Annotations/Category_ids" / name, mask)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (shutil.rmtree, "is not a folder; expected one in VIP's layout"),
        (
            lambda root: (root / "lists/val_videos.txt").unlink(),
            "val_videos.txt does not exist; expected one video a line",
        ),
        (
            lambda root: (root / "lists/val_videos.txt").write_text("\n"),
            "val_videos.txt is empty; expected one video a line",
        ),
        (
            lambda root: shutil.rmtree(root / "Images/videos7"),
            "Images/videos7 does not exist; expected a folder of frames",
        ),
        (lambda root: shutil.rmtree(root / "Annotations"), "videos1 does not exist; expected a folder of annotations"),
        (
            lambda root: (root / "Annotations/Category_ids/videos1/000000000000.png").unlink(),
            "000000000000.png does not exist; expected the first frame's annotation",
        ),
        (put("videos1/1.png", half(8, 1)), "videos1/1.png has no frame in"),
        (
            put("videos1/000000000050.png", half(8, 20)),
            "000000000050.png holds id 20; expected 0 to 19, or 255 for void",
        ),
        (
            put("videos1/000000000000.png", half(8, 20)),
            "000000000000.png holds id 20; expected 0 to 19, or 255 for void",
        ),
        (
            put("videos1/000000000050.png", half(8, 1)[:8]),
            "000000000050.png is 32 x 8; expected 32 x 32 like its frame",
        ),
    ],
)
def test_bad_data_are_one_sentence(vip: Path, spoil, sentence):
    spoil(vip)
    with pytest.raises(InputError) as refused:
        timecycle.evaluate_vip(CellFeatures(stride=4), vip, "dino", **EXACT)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["..", "a/..", ".", ".hidden", "x" * 300, "a\\b", "a\x01"])
def test_names_in_the_list_are_those_of_single_folders(tmp_path: Path, name):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/val_videos.txt").write_text(name)
    with pytest.raises(InputError, match=r"val_videos\.txt: the name") as refused:
        read_vip(tmp_path)
    assert "\n" not in str(refused.value)
