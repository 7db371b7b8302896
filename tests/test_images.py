"""Image files: supported formats and sizes; others are refused without opening files or starting programs."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.assertions import raises_input_error
from timecycle.data.images import FORMATS, decode, open_image, read_rgb

NOISE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def refused(path: Path, said: str) -> None:
    with raises_input_error(str(path), match=said):
        read_rgb(path)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_formats_are_told_apart_by_content(form, suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(NOISE).save(path, form, **({"lossless": True} if form == "WEBP" else {}))
    pixels = read_rgb(path)
    assert pixels.shape == NOISE.shape
    assert form == "JPEG" or np.array_equal(pixels, NOISE)


def test_a_phones_jpeg_of_several_images_is_its_first(tmp_path):
    path = tmp_path / "a.jpg"
    photo, preview = Image.fromarray(NOISE), Image.new("RGB", (3, 2))
    photo.save(path, "MPO", save_all=True, append_images=[preview])
    with open_image(path) as image:
        assert image.format == "MPO"
    assert read_rgb(path).shape == NOISE.shape


@pytest.mark.parametrize("form", ["TIFF", "PNG", "WEBP"])
def test_several_images_in_a_file_are_refused(form, tmp_path):
    path = tmp_path / "a.png"
    others = [Image.fromarray(NOISE[::-1].copy()), Image.fromarray(NOISE[:, ::-1].copy())]
    Image.fromarray(NOISE).save(path, form, save_all=True, append_images=others)
    refused(path, "holds 3 images; expected one")


@pytest.mark.parametrize("compression", ["tiff_ccitt", "group3", "group4"])
def test_compressions_whose_damage_cannot_be_noticed_are_refused(compression, tmp_path):
    Image.fromarray(NOISE[..., 0] > 127).save(tmp_path / "a.tif", compression=compression)
    refused(tmp_path / "a.tif", f"it is compressed as {compression}, whose damage is not detected")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_postscript_starts_no_program(suffix, tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    for name in ("gs", "gswin64c", "gswin32c"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {ran}\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    refused(path, "cannot be read as an image")
    assert not ran.exists()


@pytest.mark.parametrize("form", ["GIF", "PPM", "ICO", "PCX", "TGA", "PDF", "JPEG2000"])
def test_other_formats_are_refused(form, tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "a.png", form)
    refused(tmp_path / "a.png", "cannot be read as an image .*; expected one of JPEG, PNG, WEBP, BMP, TIFF")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((width + 7) // 8 + 1) * height, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(more) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


# Pillow reads the first, warns of the second, refuses the third.
@pytest.mark.parametrize("width", [9000, 15000, 100_000])
def test_images_of_too_many_pixels_are_refused_before_they_are_decoded(width, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(png(width, 10_000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if width == 9000:
            monkeypatch.setenv("TIMECYCLE_MAX_PIXELS", "89999999")
        refused(path, rf"has {width} x 10000 pixels; expected at most \d+ \(TIMECYCLE_MAX_PIXELS raises it\)")
        monkeypatch.setenv("TIMECYCLE_MAX_PIXELS", str(width * 10_000))
        with open_image(path) as image:
            assert image.size == (width, 10_000)


@pytest.mark.parametrize("number", ["0", "-1", "many", "1e9", "9" * 5000, "²"])
def test_bad_values_of_max_pixels_are_refused(number, tmp_path, monkeypatch):
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    monkeypatch.setenv("TIMECYCLE_MAX_PIXELS", number)
    with raises_input_error(match=r"TIMECYCLE_MAX_PIXELS is .*; expected a number of pixels"):
        read_rgb(tmp_path / "a.png")


def test_a_decompression_bomb_in_a_text_chunk_is_refused(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(3, 2, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26)))))
    refused(path, "cannot be read as an image")


@pytest.mark.parametrize("size", [(0, 2), (2, 0), (2**31, 1)])
def test_invalid_sizes_are_refused(size, tmp_path):
    data = bytearray(png(2, 2))
    data[16:24] = struct.pack(">II", *size)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(data)
    refused(tmp_path / "a.png", r"a\.png")


def test_errors_of_a_decoder_become_one_sentence(tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "a.png")

    class Failing:
        """Raises as decoders do."""

        format = "BMP"

        def load(self) -> None:
            raise struct.error("unpack requires\na buffer")

    with raises_input_error("a.png is damaged or truncated (unpack requires a buffer)"):
        decode(Failing(), tmp_path / "a.png")


@pytest.mark.parametrize("form", FORMATS)
def test_images_that_end_early_are_refused(form, tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.kron(NOISE, np.ones((9, 9, 1), np.uint8))).save(buffer, form)
    path = tmp_path / "a.png"
    for length in (0, 1, 16, 30, len(buffer.getvalue()) // 2, len(buffer.getvalue()) - 20):
        path.write_bytes(buffer.getvalue()[:length])
        refused(path, "cannot be read as an image|is damaged or truncated")


def test_one_changed_bit_of_a_pngs_pixels_is_noticed(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(NOISE).save(path)
    data = path.read_bytes()
    begin = data.index(b"IDAT") + 4
    length = int.from_bytes(data[begin - 8 : begin - 4], "big")
    for at in range(begin, begin + length + 4):  # with the checksum itself
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        refused(path, r"is damaged or truncated \(")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x" * 300 + ".png", r"cannot be read \(File name too long\)"),
        ("folder", "is a folder"),
        ("none", "does not exist"),
    ],
)
def test_missing_files_and_folders_are_refused(name, said, tmp_path):
    (tmp_path / "folder").mkdir()
    refused(tmp_path / name, f"{said}; expected an image")
