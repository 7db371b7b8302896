"""Masks of object ids: files of all kinds that are read, refused or repaired by options; masks in memory."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.assertions import raises_input_error
from timecycle.data.masks import PALETTE, MaskReading, ids_of, mask_reading, read_annotation, read_mask, write_mask
from timecycle.errors import InputError


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
    Image.fromarray(white).save(tmp_path / "gray.png")
    for path, remap in ((tmp_path / "bilevel.png", False), (tmp_path / "gray.png", True)):
        np.testing.assert_array_equal(read_mask(path, mask_reading(remap)), white // 255)


def moving(offset: int = 0) -> np.ndarray:
    """Two objects, uint8 [48, 64]."""
    mask = np.zeros((48, 64), np.uint8)
    mask[5 + offset : 25 + offset, 5:30] = 1
    mask[28:44, 30 + offset : 55 + offset] = 2
    return mask


def gray(*values: int) -> Image.Image:
    return Image.fromarray(np.array(values, np.uint8)[moving()])


def in_color() -> Image.Image:
    return Image.fromarray(PALETTE[moving()])


def transparent_background() -> Image.Image:
    pixels = np.dstack([PALETTE[moving()], np.where(moving() > 0, 255, 0).astype(np.uint8)])
    pixels[moving() == 0, :3] = 77
    return Image.fromarray(pixels)


def rotated() -> Image.Image:
    return Image.fromarray(np.rot90(moving()))  # and back by the file's orientation, 6


def soft() -> Image.Image:
    return gray(0, 255, 0).resize((256, 192), Image.Resampling.BILINEAR).resize((64, 48), Image.Resampling.LANCZOS)


def other_palette(*colors: int) -> Image.Image:
    image = Image.fromarray(moving())
    image.putpalette(colors)
    return image


EXIF = Image.Exif()
EXIF[274] = 6
READ = {
    "palette in another order": (in_color().quantize, {}),
    "colors": (in_color, {}),
    "transparent background": (transparent_background, {}),
    "gray with alpha": (lambda: gray(0, 1, 2).convert("LA"), {}),
    "16 bits": (lambda: Image.fromarray(moving().astype(np.uint16)), {}),
    "gray palette": (lambda: gray(0, 1, 2).convert("P"), {}),
    "another palette": (lambda: other_palette(0, 0, 0, 236, 95, 103, 249, 145, 87), {}),
    "rotated": (rotated, {"exif": EXIF}),
}


@pytest.mark.parametrize(("image", "options"), READ.values(), ids=READ.keys())
def test_masks_of_all_kinds_are_read(tmp_path, image, options):
    image().save(tmp_path / "mask.png", **options)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), moving())
    assert read_annotation(tmp_path / "mask.png")[1] == []


REFUSED = {
    "black and white": (lambda: gray(0, 255, 255), "only the values 0 and 255.*--remap-255"),
    "black and white, 16 bits": (
        lambda: Image.fromarray(np.where(moving() > 0, 65535, 0).astype(np.uint16)),
        "only the values 0 and 255.*--remap-255",
    ),
    "soft edges": (soft, "has soft edges.*--threshold"),
    "soft edges in color": (lambda: soft().convert("RGB"), "has soft edges.*--threshold"),
    "0 and 128": (lambda: gray(0, 128, 128), "gray value 128;.*--threshold"),
    "0 and 200": (lambda: gray(0, 200, 0), "gray value 200;.*--remap"),
    "100 and 200": (lambda: gray(0, 100, 200), "gray values 100, 200;.*--remap"),
    "another background": (lambda: other_palette(255, 255, 255, 255, 0, 0, 0, 0, 255), "255, 255, 255. at index 0"),
    "black at another index": (lambda: other_palette(0, 0, 200, 255, 0, 0, 0, 0, 0), "black at index 2"),
    "web colors": (lambda: in_color().convert("P"), "palette of web colors"),
    "unknown colors": (
        lambda: Image.fromarray(np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)[moving()]),
        "mode RGB with 2 colors that the DAVIS palette does not have",
    ),
    "half transparent": (lambda: Image.fromarray(np.full((4, 4, 4), 128, np.uint8)), "partly transparent"),
    "ids of 16 bits": (lambda: Image.fromarray(moving().astype(np.uint16) * 1000), "holds the value 2000"),
}


@pytest.mark.parametrize(("image", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_other_images_are_refused_with_the_option_that_helps(tmp_path, image, said):
    image().save(tmp_path / "mask.png")
    with raises_input_error(match=rf"mask\.png .*{said}"):
        read_annotation(tmp_path / "mask.png")


def test_options_read_the_intended_ids(tmp_path):
    soft().save(tmp_path / "soft.png")
    reading = mask_reading(threshold=128)
    assert read_annotation(tmp_path / "soft.png", reading)[1] == []
    assert np.count_nonzero(read_mask(tmp_path / "soft.png", reading) != (moving() == 1)) <= 4
    gray(0, 128, 200).save(tmp_path / "gray.png")
    for remap in (["128=1", "200=2"], {128: 1, 200: 2}, ["compact"]):
        found = mask_reading(remap=remap).of_sequence(tmp_path / "gray.png")
        assert read_annotation(tmp_path / "gray.png", found)[1] == []
        np.testing.assert_array_equal(read_mask(tmp_path / "gray.png", found), moving())
    with pytest.raises(InputError, match="soft edges"):  # such a file holds more than 255
        read_annotation(tmp_path / "soft.png", mask_reading(remap_255=True))


def test_compact_ids_are_those_of_the_first_annotation(tmp_path):
    gray(0, 3, 9).save(tmp_path / "first.png")
    reading = mask_reading(remap=["compact"]).of_sequence(tmp_path / "first.png")
    Image.fromarray(np.array([[0, 1, 2, 3, 9, 255]], np.uint8)).save(tmp_path / "later.png")
    assert read_mask(tmp_path / "later.png", reading).tolist() == [[0, 0, 0, 1, 2, 255]]


@pytest.mark.parametrize(
    ("values", "said"), [((0, 3, 9), "holds the ids 3, 9 of 1 to 9"), ((0, 38, 75), "palette's colors turned gray")]
)
def test_ids_with_gaps_are_noted(tmp_path, values, said):
    gray(*values).save(tmp_path / "mask.png")
    (note,) = read_annotation(tmp_path / "mask.png")[1]
    assert said in note
    assert "--remap compact" in note
    assert read_mask(tmp_path / "mask.png").max() == values[-1]


@pytest.mark.parametrize("words", [["x"], ["3"], ["3="], ["3=256"], ["-1=2"]])
def test_bad_remap_pairs_are_refused(words):
    with pytest.raises(InputError, match=f"--remap {words[0]} is not a pair; expected VALUE=ID"):
        mask_reading(remap=words)


def test_masks_in_memory_are_read_as_files_are():
    mask = moving()
    for given in (mask, mask.astype(np.int64), np.asfortranarray(mask), PALETTE[mask]):
        np.testing.assert_array_equal(ids_of(given), mask)
    np.testing.assert_array_equal(ids_of(mask > 0), mask > 0)
    for given, said in (
        ((mask == 1) * np.uint8(255), "only the values 0 and 255"),
        ((mask == 1) * np.uint8(128), "gray value 128"),
        (np.array(soft()), "soft edges"),
        (mask.astype(np.float32), "float32"),
        (mask.astype(np.int16) - 1, "from -1 to 1"),
        (mask[None], "expected object ids"),
        (mask[:0], "expected integers or bool"),
    ):
        with pytest.raises(InputError, match=said):
            ids_of(given)


def test_masks_with_void_and_without_objects_are_valid(tmp_path):
    for name, values in (("void", (0, 1, 255)), ("empty", (0, 0, 0))):
        gray(*values).save(tmp_path / f"{name}.png")
        assert read_annotation(tmp_path / f"{name}.png")[1] == []


@pytest.mark.parametrize("content", [None, b"", b"text"], ids=["missing", "empty", "text"])
def test_what_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "mask.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"mask\.png"):
        read_mask(path)


def test_thin_objects_are_not_taken_for_soft_edges(tmp_path):
    stripes = np.repeat(np.arange(24, dtype=np.uint8), 2)[None].repeat(48, axis=0)  # 2 pixels wide, side by side
    mask = np.where(np.arange(48)[:, None] % 16 < 12, stripes, 0)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert read_annotation(tmp_path / "mask.png")[1] == []
    np.testing.assert_array_equal(ids_of(mask), mask)


def test_a_threshold_applies_to_8_and_16_bits(tmp_path):
    for most in (255, 65535):
        Image.fromarray(np.where(moving() == 1, most, 0).astype(np.uint16)).save(tmp_path / f"{most}.png")
        found = read_mask(tmp_path / f"{most}.png", mask_reading(threshold=128))
        np.testing.assert_array_equal(found, moving() == 1)


def test_davis_2016_masks_merge_objects_and_refuse_soft_edges(tmp_path):
    soft().save(tmp_path / "soft.png")
    with pytest.raises(InputError, match="soft edges"):
        read_annotation(tmp_path / "soft.png", MaskReading(single=True))
    gray(0, 255, 7).save(tmp_path / "two.png")
    assert read_annotation(tmp_path / "two.png", MaskReading(single=True))[1] == []
    np.testing.assert_array_equal(read_mask(tmp_path / "two.png", MaskReading(single=True)), moving() > 0)


@pytest.mark.parametrize("word", ["9" * 5000 + "=1", "1=" + "9" * 5000, "\u0663=1", "1=\u00b2", "-1=1", "1=1=1"])
def test_values_to_remap_are_numbers(word):
    with raises_input_error(match="is not a pair; expected VALUE=ID"):
        mask_reading(remap=[word])


def flip_bit(data: bytes) -> bytes:
    at = data.index(b"IDAT") + 12
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


@pytest.mark.parametrize("damage", [lambda data: data[:-100], flip_bit], ids=["truncated", "changed"])
def test_damaged_masks_are_refused(tmp_path, damage):
    path = tmp_path / "mask.png"
    write_mask(path, np.random.default_rng(0).integers(0, 9, (64, 64)).astype(np.uint8))
    path.write_bytes(damage(path.read_bytes()))
    with raises_input_error("mask.png is damaged or truncated"):
        read_mask(path)
