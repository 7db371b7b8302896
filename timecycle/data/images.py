"""Images read, with EXIF orientation applied and damaged files refused, and encoded. Does not import torch."""

import io
import os
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from timecycle.errors import InputError
from timecycle.files import check_is_file

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""Pillow's names of the accepted formats; for some others Pillow would start external programs."""

MOST_PIXELS = "TIMECYCLE_MAX_PIXELS"
"""Environment variable: how many pixels an image or a video frame may have; by default Pillow's warning limit."""


def open_image(path: Path) -> Image.Image:
    """Open an image without decoding its pixels; size and mode are known from the header.

    Raises InputError if the file is missing, is not a JPEG, PNG, WEBP, BMP or TIFF, holds several images (except for
    multi-image JPEGs of phones, whose first is the photo), or has more pixels than the environment variable
    TIMECYCLE_MAX_PIXELS allows, by default Pillow's warning limit.
    """
    check_is_file(path, "an image there")
    try:
        image = _opened(path)
        if image is None:
            raise ValueError("unknown format")
        pages = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
    except Exception as error:  # damaged files make Pillow raise exceptions of many types
        raise InputError(
            f"{path} cannot be read as an image ({_reason(error)}); expected one of {', '.join(FORMATS)}"
        ) from None
    try:
        if pages > 1:
            raise InputError(f"{path} holds {pages} images; expected one")
        check_pixels(path, *image.size)
    except InputError:
        image.close()
        raise
    return image


def _opened(path: Path) -> Image.Image | None:
    """`Image.open`, which would warn about or refuse large images; None if the file is of none of `FORMATS`."""
    Image.init()
    with path.open("rb") as file:
        start = file.read(16)
    for name in FORMATS:
        make, accepts = Image.OPEN[name]
        if accepts is None or accepts(start) is True:
            return make(str(path), str(path))  # type: ignore[arg-type]  # opens the path, and closes it on failure
    return None


def check_pixels(path: Path, width: int, height: int) -> None:
    """Raise InputError for an image or a video without pixels, or with more than `most_pixels`."""
    if width < 1 or height < 1:
        raise InputError(f"{path} has {width} x {height} pixels; expected some")
    if width * height > most_pixels():
        raise InputError(
            f"{path} has {width} x {height} pixels; expected at most {most_pixels()} ({MOST_PIXELS} raises it)"
        )


def most_pixels() -> int:
    """The maximum number of pixels. Raises InputError if MOST_PIXELS is set to anything but a positive number."""
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
    # Pillow swaps a TIFF's size itself; in a PNG it would decode the pixels to find EXIF data behind them.
    known = image.format not in ("PNG", "TIFF") or (image.format == "PNG" and "exif" in image.info)
    return image.size[::-1] if known and _orientation(image) > 4 else image.size


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image, 1 to 8; 1 if none can be read."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged files make Pillow raise exceptions of many types
        return 1
    return found if found in range(1, 9) else 1


def decode(image: Image.Image, path: Path, mode: str | None = None) -> np.ndarray:
    """Decode an opened image into an array, with its EXIF orientation applied.

    Args:
        image: from `open_image`.
        path: its file, for error messages.
        mode: Pillow's name of what it is converted to, such as "RGB"; by default it keeps its own.

    Uses Pillow, since OpenCV fills the missing part of truncated files with gray; intact files give equal pixels.
    Raises InputError if the data end early or are damaged.
    """
    try:
        if image.format == "PNG":
            _check_png(path)
        if image.format == "TIFF" and image.info.get("compression") in _UNCHECKED:
            raise ValueError(f"it is compressed as {image.info['compression']}, whose damage is not detected")
        image.load()
        turned = _TURNS.get(_orientation(image))
        if turned is not None:
            image = image.transpose(turned)
        return np.array(image.convert(mode) if mode else image)
    except Exception as error:  # damaged files make Pillow raise exceptions of many types
        raise InputError(
            f"{path} is damaged or truncated ({_reason(error)}); expected a complete image, {', '.join(FORMATS)}"
        ) from None


_UNCHECKED = ("tiff_ccitt", "group3", "group4", "tiff_thunderscan", "tiff_sgilog", "tiff_sgilog24")
"""TIFF compressions whose decoders do not detect damage."""


def _check_png(path: Path) -> None:
    """Raise ValueError for a PNG that ends early or has a wrong checksum, which Pillow does not always check."""
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
"""The transposition that undoes an EXIF orientation."""


def jpeg_bytes(rgb: np.ndarray, quality: int = 92) -> bytes:
    """Encode an image, uint8 RGB [H, W, 3], as JPEG with chroma at half size."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def read_rgb(path: Path) -> np.ndarray:
    """Read an image as RGB, uint8 [H, W, 3], with its EXIF orientation applied.

    16-bit gray, and floating point from 0 to 1, are scaled to 8 bits. Raises InputError if the file is missing or
    damaged, or holds values out of range.
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
            f"{path} holds values from {values.min():g} to {values.max():g}; expected 0 to {most:g} in an image of "
            f"{'floating point' if most == 1 else '16 bits'}"
        )
    return np.round(values * (255.0 / most)).astype(np.uint8)
