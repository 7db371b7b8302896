"""Mask files as people make them: colors, black and white, cut-outs, soft edges, JPEG; and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.assertions import raises_input_error
from timecycle.data.masks import PALETTE, write_mask
from timecycle.data.person_masks import fit_mask, read_any_mask

RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def two_objects() -> np.ndarray:
    """Ids, uint8 [60, 80]; object 1 appears first in raster order."""
    mask = np.zeros((60, 80), np.uint8)
    mask[8:30, 10:40] = 1
    mask[25:55, 45:75] = 2
    return mask


def colored(*colors: tuple[int, int, int]) -> Image.Image:
    return Image.fromarray(np.array(colors, np.uint8)[two_objects()])


def gray(*values: int) -> Image.Image:
    return Image.fromarray(np.array(values, np.uint8)[two_objects()])


def softened(image: Image.Image) -> Image.Image:
    """Edges two pixels wide: enlarged, and reduced with averaging."""
    return image.resize((240, 180), Image.Resampling.NEAREST).resize((80, 60), Image.Resampling.BICUBIC)


def cut_out(photo: bool) -> Image.Image:
    mask = two_objects() > 0
    rgb = np.random.default_rng(0).integers(0, 256, (60, 80, 3)) if photo else np.full((60, 80, 3), 200)
    return Image.fromarray(np.dstack([rgb, np.where(mask, 255, 60)]).astype(np.uint8))


def stored(tmp_path: Path, image: Image.Image, name: str = "mask.png", **options: object) -> Path:
    image.save(tmp_path / name, **options)
    return tmp_path / name


BOTH = two_objects()
READ = {
    "palette": (lambda: Image.fromarray(BOTH), BOTH, "objects 1, 2, as stored"),
    "one id": (lambda: gray(0, 3, 3), BOTH.clip(max=1) * 3, "object 3, as stored"),
    "bilevel": (lambda: gray(0, 255, 255).convert("1"), BOTH > 0, "object 1, as stored"),
    "16 bits": (lambda: Image.fromarray(BOTH.astype(np.uint16) * 1000), BOTH, "value 2000 is object 2"),
    "16 bits, white": (lambda: Image.fromarray((BOTH > 0) * np.uint16(65535)), BOTH > 0, "white is object 1"),
    "black and white": (lambda: gray(0, 255, 255), BOTH > 0, "white (255, 255, 255) is object 1"),
    "two grays": (lambda: gray(0, 100, 200), BOTH, "(200, 200, 200) is object 2"),
    "colors": (lambda: colored(BLACK, RED, BLUE), BOTH, "red (255, 0, 0) is object 1"),
    "white background": (lambda: colored(WHITE, RED, BLUE), BOTH, "white (255, 255, 255), the most frequent color of"),
    "DAVIS colors": (lambda: colored(BLACK, tuple(PALETTE[2]), RED), np.uint8([0, 2, 1])[BOTH], "is object 2"),
    "palette of web colors": (lambda: colored(BLACK, RED, BLUE).convert("P"), BOTH, "blue (0, 0, 255) is object 2"),
    "cut-out of a photograph": (lambda: cut_out(True), BOTH > 0, "what is opaque is object 1"),
    "cut-out of one color": (lambda: cut_out(False), BOTH > 0, "what is opaque is object 1"),
}


@pytest.mark.parametrize(("image", "expected", "said"), READ.values(), ids=READ.keys())
def test_masks_of_many_kinds_are_read_with_a_note(tmp_path, image, expected, said):
    ids, notes = read_any_mask(stored(tmp_path, image()))
    assert ids.dtype == np.uint8
    np.testing.assert_array_equal(ids, expected)
    assert any(said in note and note.startswith("mask.png: ") for note in notes), notes


def test_transparent_colors_are_objects(tmp_path):
    rgba = colored((9, 9, 9), RED, BLUE).convert("RGBA")
    rgba.putalpha(gray(0, 255, 255))
    ids, notes = read_any_mask(stored(tmp_path, rgba))
    np.testing.assert_array_equal(ids, BOTH)
    assert notes[-1] == "mask.png: what is transparent is background"


SOFT = {
    "black and white": (lambda: gray(0, 255, 255), BOTH > 0, "gray values from 128 on are white"),
    "colors": (lambda: colored(BLACK, RED, BLUE), BOTH, "nearest of 3 colors"),
}


@pytest.mark.parametrize(("image", "expected", "said"), SOFT.values(), ids=SOFT.keys())
@pytest.mark.parametrize("kind", ["soft.png", "noisy.jpg"])
def test_soft_edges_and_noise_take_the_nearest_color(tmp_path, image, expected, said, kind):
    picture = softened(image()) if kind == "soft.png" else image()
    ids, notes = read_any_mask(stored(tmp_path, picture, kind))
    edge = np.zeros(expected.shape, bool)
    edge[1:] |= expected[1:] != expected[:-1]
    edge[:, 1:] |= expected[:, 1:] != expected[:, :-1]
    edge[:-1] |= edge[1:]
    edge[:, :-1] |= edge[:, 1:]
    assert (ids != expected)[~edge].mean() < 0.01
    assert set(np.unique(ids)) == set(np.unique(expected))
    assert any(said in note for note in notes), notes


def test_soft_black_and_white_is_split_at_128(tmp_path):
    values = np.repeat(np.uint8([0, 0, 0, 127, 128, 255, 255, 255]), 4)[None].repeat(32, axis=0)
    values = values[:, np.r_[0:12, 12:13, 16:17, 20:32]]
    ids = read_any_mask(stored(tmp_path, Image.fromarray(values)))[0]
    np.testing.assert_array_equal(ids, values >= 128)


def photograph() -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 12, (60, 80, 3)).cumsum(axis=1)
    return (noise + 128).clip(0, 255).astype(np.uint8)


REFUSED = {
    "photograph": (lambda: Image.fromarray(photograph()), "m.png", "looks like a photograph"),
    "gray photograph": (lambda: Image.fromarray(photograph()[..., 0]), "m.png", "looks like a photograph"),
    "photograph in JPEG": (lambda: Image.fromarray(photograph()), "m.jpg", "looks like a photograph"),
    "black": (lambda: gray(0, 0, 0), "m.png", "holds no object"),
    "one color": (lambda: colored(RED, RED, RED), "m.png", "holds no object"),
    "transparent": (lambda: Image.new("RGBA", (8, 8)), "m.png", "holds no object"),
    "alike colors in JPEG": (lambda: colored(BLACK, (200, 0, 0), (230, 0, 0)), "m.jpg", "too alike"),
    "300 values": (
        lambda: Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) + 1),
        "m.png",
        "at most 254",
    ),
}


@pytest.mark.parametrize(("image", "name", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_mask_is_refused(tmp_path, image, name, said):
    with raises_input_error(name, said):
        read_any_mask(stored(tmp_path, image(), name))


def test_damaged_files_are_refused(tmp_path):
    path = stored(tmp_path, colored(BLACK, RED, BLUE))
    path.write_bytes(path.read_bytes()[:-20])
    with raises_input_error("mask.png is damaged or truncated"):
        read_any_mask(path)


def test_written_ids_are_read_back(tmp_path):
    ids = np.random.default_rng(0).integers(0, 12, (6, 8)).astype(np.uint8).repeat(10, 0).repeat(10, 1)
    write_mask(tmp_path / "mask.png", ids)
    np.testing.assert_array_equal(read_any_mask(tmp_path / "mask.png")[0], ids)


def test_masks_of_another_size_are_resized_if_asked():
    path = Path("mask.png")
    assert fit_mask(BOTH, (60, 80), path, False) is BOTH
    with raises_input_error("mask.png is 80 x 60; expected 160 x 120", "--resize-masks"):
        fit_mask(BOTH, (120, 160), path, False)
    np.testing.assert_array_equal(fit_mask(BOTH, (120, 160), path, True), BOTH.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(fit_mask(BOTH, (30, 40), path, True), BOTH[1::2, 1::2])
    for resize in (False, True):
        with raises_input_error("mask.png is 80 x 60; expected 160 x 90", "aspect ratio"):
            fit_mask(BOTH, (90, 160), path, resize)
    dot = np.zeros((60, 80), np.uint8)
    dot[0, 0] = 3
    with raises_input_error("loses object 3"):
        fit_mask(dot, (6, 8), path, True)
