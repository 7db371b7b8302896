"""Images read as a viewer shows them, damage refused. Knows no torch."""

import os
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from timecycle.errors import InputError
from timecycle.files import check_is_file

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""Pillow's names of the formats that are read; for some others Pillow would start other programs."""

MOST_PIXELS = "TIMECYCLE_MAX_PIXELS"
"""An environment variable: how many pixels an image or a frame of a video may have.

By default as many as Pillow takes without a warning.
"""


def open_image(path: Path) -> Image.Image:
    """Open an image without decoding its pixels; size and mode are known from the header.

    Raises InputError if the file is missing, is no image of `FORMATS`, holds several images (but for a phone's JPEG,
    whose first is the photo), or has more pixels than `most_pixels`.
    """
    check_is_file(path, "a picture there")
    try:
        image = _opened(path)
        if image is None:
            raise ValueError("it is of no format that is read")
        pages = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
    except Exception as error:  # Pillow raises whatever the damage leads to
        raise InputError(
            f"{path} cannot be read as a picture ({_reason(error)}); expected one of {', '.join(FORMATS)}"
        ) from None
    try:
        if pages > 1:
            raise InputError(f"{path} holds {pages} pictures; expected one")
        check_pixels(path, *image.size)
    except InputError:
        image.close()
        raise
    return image


def _opened(path: Path) -> Image.Image | None:
    """What Image.open returns; None if the file begins as none of `FORMATS` does.

    Image.open itself warns of large images, and refuses larger ones, before their size can be checked.
    """
    Image.init()
    with path.open("rb") as file:
        start = file.read(16)
    for name in FORMATS:
        make, accepts = Image.OPEN[name]
        if accepts is None or accepts(start) is True:
            return make(str(path), str(path))  # type: ignore[arg-type]  # opens a path itself, and closes it on failure
    return None


def check_pixels(path: Path, width: int, height: int) -> None:
    """Raise InputError for an image or a video of no pixels, or of more than `most_pixels`."""
    if width < 1 or height < 1:
        raise InputError(f"{path} has {width} x {height} pixels; expected some")
    if width * height > most_pixels():
        raise InputError(
            f"{path} has {width} x {height} pixels; expected at most {most_pixels()} ({MOST_PIXELS} raises it)"
        )


def most_pixels() -> int:
    """How many pixels an image may have. Raises InputError if MOST_PIXELS is set to anything but a positive number."""
    text = os.environ.get(MOST_PIXELS, "")
    if not text:
        return Image.MAX_IMAGE_PIXELS or sys.maxsize
    if not (text.isascii() and text.isdecimal() and len(text) <= 18 and int(text)):
        raise InputError(f"{MOST_PIXELS} is {text[:50]!r}; expected a number of pixels")
    return int(text)


def _reason(error: Exception) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def shown_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened image after its EXIF orientation is applied. Decodes no pixels."""
    # A TIFF's size is turned already; of a PNG, Pillow would decode the pixels to look for what comes behind them.
    known = image.format not in ("PNG", "TIFF") or (image.format == "PNG" and "exif" in image.info)
    return image.size[::-1] if known and _orientation(image) > 4 else image.size


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image, 1 to 8; 1 where none can be read, as viewers do."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises whatever the damage leads to
        return 1
    return found if found in range(1, 9) else 1


def decode(image: Image.Image, path: Path, mode: str | None = None) -> np.ndarray:
    """Decode an opened image into an array, its EXIF orientation applied, converted to `mode` if given.

    By Pillow, since OpenCV fills what is missing of truncated files with gray; pixels of whole files are the same.
    Raises InputError if the data end early or are damaged.
    """
    try:
        if image.format == "PNG":
            _check_png(path)
        if image.format == "TIFF" and image.info.get("compression") in _UNCHECKED:
            raise ValueError(f"it is compressed as {image.info['compression']}, whose damage is not noticed")
        image.load()
        turned = _TURNS.get(_orientation(image))
        if turned is not None:
            image = image.transpose(turned)
        return np.array(image.convert(mode) if mode else image)
    except Exception as error:  # Pillow raises whatever the damage leads to
        raise InputError(
            f"{path} is damaged or truncated ({_reason(error)}); expected a complete picture of {', '.join(FORMATS)}"
        ) from None


_UNCHECKED = ("tiff_ccitt", "group3", "group4", "tiff_thunderscan", "tiff_sgilog", "tiff_sgilog24")
"""Compressions of TIFF whose decoders do not notice damage."""


def _check_png(path: Path) -> None:
    """Raise ValueError for a PNG whose checksums are wrong, or that ends early; Pillow does not check all of them."""
    data = path.read_bytes()
    at = 8
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 8 + length
        stored = int.from_bytes(data[end : end + 4], "big")
        if kind[:1].isupper() and (end + 4 > len(data) or zlib.crc32(memoryview(data)[at + 4 : end]) != stored):
            raise ValueError(f"the checksum of its {kind.decode('latin1')} at byte {at} is wrong")
        if kind == b"IEND":
            return
        at = end + 4
    raise ValueError("it ends early")


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""The transposition that makes an image of an EXIF orientation upright."""


def read_rgb(path: Path) -> np.ndarray:
    """Read an image as a viewer shows it: RGB, uint8 [H, W, 3], its EXIF orientation applied.

    16-bit gray, and floating point from 0 to 1, are scaled to 8 bits. Raises InputError if the file is missing,
    damaged, or holds values outside that range.
    """
    with open_image(path) as image:
        if image.mode == "F" or image.mode.startswith("I"):
            return np.repeat(_eight_bits(decode(image, path), path)[..., None], 3, axis=2)
        return decode(image, path, "RGB")


def _eight_bits(values: np.ndarray, path: Path) -> np.ndarray:
    """16-bit or floating-point gray [H, W] as uint8."""
    most = 1.0 if values.dtype.kind == "f" else 65535.0
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= most):
        raise InputError(
            f"{path} holds values from {values.min():g} to {values.max():g}; expected 0 to {most:g} in a picture of "
            f"{'floating point' if most == 1 else '16 bits'}"
        )
    return np.round(values * (255.0 / most)).astype(np.uint8)
