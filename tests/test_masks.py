"""Index masks on disk."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from timecycle.errors import InputError
from timecycle.masks import PALETTE, check_not_black_and_white, read_mask, write_mask


def test_palette_is_that_of_davis(shared: Path):
    with Image.open(shared / "davis" / "Annotations" / "480p" / "dog" / "00000.png") as image:
        np.testing.assert_array_equal(np.array(image.getpalette()).reshape(-1, 3), PALETTE)


def test_written_ids_are_read_back_and_carry_the_palette(tmp_path):
    mask = np.arange(256, dtype=np.uint8).reshape(8, 32)
    write_mask(tmp_path / "a" / "mask.png", mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "a" / "mask.png"), mask)
    with Image.open(tmp_path / "a" / "mask.png") as image:
        assert image.mode == "P"
        assert image.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["mask.png"]


def test_a_failed_write_leaves_the_earlier_file(tmp_path, monkeypatch):
    write_mask(tmp_path / "mask.png", np.ones((4, 4), np.uint8))
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_mask(tmp_path / "mask.png", np.zeros((4, 4), np.uint8))
    assert read_mask(tmp_path / "mask.png").all()


def test_bilevel_and_remapped_masks_hold_ids(tmp_path):
    white = np.zeros((6, 6), np.uint8)
    white[2:4] = 255
    Image.fromarray(white).convert("1").save(tmp_path / "bilevel.png")
    Image.fromarray(white).save(tmp_path / "grey.png")
    for path, remap in ((tmp_path / "bilevel.png", False), (tmp_path / "grey.png", True)):
        np.testing.assert_array_equal(read_mask(path, remap_255=remap), white // 255)


def test_black_and_white_annotation_is_refused_with_the_remedy(tmp_path):
    mask = np.zeros((4, 4), np.uint8)
    mask[0] = 255
    with pytest.raises(InputError, match=r"only|--remap-255") as refused:
        check_not_black_and_white(tmp_path / "white.png", mask)
    assert "white.png" in str(refused.value)
    mask[1] = 1
    check_not_black_and_white(tmp_path / "void.png", mask)  # void beside an object is DAVIS
    check_not_black_and_white(tmp_path / "empty.png", np.zeros((4, 4), np.uint8))


def test_a_colour_picture_is_no_mask(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "rgb.png")
    with pytest.raises(InputError, match=r"rgb\.png is a picture of mode RGB"):
        read_mask(tmp_path / "rgb.png")


@pytest.mark.parametrize("content", [None, b"", b"text"], ids=["missing", "empty", "text"])
def test_what_is_no_picture_is_named(tmp_path, content):
    path = tmp_path / "mask.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"mask\.png"):
        read_mask(path)


def test_a_truncated_mask_is_named(tmp_path):
    path = tmp_path / "mask.png"
    write_mask(path, np.random.default_rng(0).integers(0, 9, (64, 64)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"mask\.png is damaged or truncated"):
        read_mask(path)
