"""Sequences on disk: both listings, and every way they can be wrong."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from timecycle.data.davis import read_davis, read_filelist
from timecycle.errors import InputError
from timecycle.masks import write_mask


def frames(root: Path, name: str = "first") -> Path:
    return root / "JPEGImages" / "480p" / name


def masks(root: Path, name: str = "first") -> Path:
    return root / "Annotations" / "480p" / name


def test_sequences_come_in_the_order_of_the_list(small_davis: Path):
    (small_davis / "ImageSets" / "2017" / "val.txt").write_text("second\n\nfirst\n")
    found = read_davis(small_davis)
    assert [sequence.name for sequence in found] == ["second", "first"]
    assert [path.name for path in found[0].frames] == [f"{i:05d}.jpg" for i in range(4)]
    assert found[0].scored
    assert [sequence.name for sequence in read_davis(small_davis, names=["first"])] == ["first"]


def test_a_first_annotation_alone_is_enough_but_not_scored(small_davis: Path):
    for path in sorted(masks(small_davis).glob("*.png"))[1:]:
        path.unlink()
    assert [sequence.scored for sequence in read_davis(small_davis)] == [False, True]


def test_filelist_takes_absolute_and_relative_folders(small_davis: Path):
    listing = small_davis / "list.txt"
    listing.write_text(
        f"{frames(small_davis)}/ {masks(small_davis)}/\n\nJPEGImages/480p/second Annotations/480p/second\n"
    )
    assert [sequence.name for sequence in read_filelist(listing)] == ["first", "second"]
    assert [sequence.name for sequence in read_filelist(listing, names=["second"])] == ["second"]


def replace_annotation(root: Path, mask: np.ndarray) -> None:
    write_mask(masks(root) / "00000.png", mask)


BAD = {
    "no folder": (lambda root: shutil.rmtree(root), "is not a folder; expected one in DAVIS layout"),
    "no list": (lambda root: (root / "ImageSets/2017/val.txt").rename(root / "ImageSets/2017/train.txt"), "train"),
    "empty list": (lambda root: (root / "ImageSets/2017/val.txt").write_text("\n"), "val.txt is empty"),
    "no frames folder": (lambda root: shutil.rmtree(frames(root)), "JPEGImages/480p/first does not exist"),
    "no frames": (lambda root: [p.unlink() for p in frames(root).iterdir()], "first holds no frames"),
    "no annotations folder": (lambda root: shutil.rmtree(masks(root)), "Annotations/480p/first does not exist"),
    "no annotations": (lambda root: [p.unlink() for p in masks(root).iterdir()], "first holds no annotations"),
    "no first annotation": (lambda root: (masks(root) / "00000.png").unlink(), "first/00000.png does not exist"),
    "a frame missing": (lambda root: (frames(root) / "00002.jpg").unlink(), "holds 4 annotations for 3 frames"),
    "an annotation missing": (lambda root: (masks(root) / "00002.png").unlink(), "holds 3 annotations for 4 frames"),
    "other names": (
        lambda root: (frames(root) / "00002.jpg").rename(frames(root) / "00009.jpg"),
        "00003.jpg has no annotation",
    ),
    "annotation of another size": (
        lambda root: replace_annotation(root, np.ones((20, 30), np.uint8)),
        "00000.png is 30 x 20; expected 64 x 48 like",
    ),
    "frame of another size": (
        lambda root: Image.new("RGB", (10, 10)).save(frames(root) / "00003.jpg"),
        "00003.jpg is 10 x 10; expected 64 x 48 like",
    ),
    "frame that is no picture": (lambda root: (frames(root) / "00001.jpg").write_text("?"), "00001.jpg cannot be read"),
    "annotation cut off": (
        lambda root: (masks(root) / "00000.png").write_bytes((masks(root) / "00000.png").read_bytes()[:-40]),
        "00000.png is damaged or truncated",
    ),
    "annotation 0/255": (
        lambda root: replace_annotation(root, np.eye(48, 64, dtype=np.uint8) * 255),
        "--remap-255",
    ),
}


@pytest.mark.parametrize(("damage", "said"), BAD.values(), ids=BAD.keys())
def test_what_does_not_fit_is_said_in_one_sentence(small_davis: Path, damage, said):
    damage(small_davis)
    with pytest.raises(InputError) as refused:
        read_davis(small_davis)
    assert said in str(refused.value)
    assert str(small_davis) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_black_and_white_annotations_can_be_remapped(small_davis: Path):
    replace_annotation(small_davis, np.eye(48, 64, dtype=np.uint8) * 255)
    assert len(read_davis(small_davis, remap_255=True)) == 2


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (None, "does not exist"),
        ("", "is empty"),
        ("JPEGImages/480p/first\n", "line 1 has 1 words"),
        ("JPEGImages/480p/first Annotations/480p/first\n" * 2, "line 2 names a second sequence first"),
        ("JPEGImages/480p/third Annotations/480p/third\n", "third does not exist"),
    ],
)
def test_a_bad_filelist_is_said_in_one_sentence(small_davis: Path, lines, said):
    listing = small_davis / "list.txt"
    if lines is not None:
        listing.write_text(lines)
    with pytest.raises(InputError, match=said):
        read_filelist(listing)


def test_an_unknown_sequence_is_named_with_the_known_ones(small_davis: Path):
    with pytest.raises(InputError, match=r"third is not in .* first, second"):
        read_davis(small_davis, names=["third"])
