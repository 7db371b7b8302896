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
"""Formats of pictures that are read, as Pillow calls them; of others some are read by programs that Pillow starts."""

MOST_PIXELS = "TIMECYCLE_MAX_PIXELS"
"""An environment variable: how many pixels a picture, or a frame of a video, may have.

Without it as many as Pillow takes without a warning.
"""


def open_image(path: Path) -> Image.Image:
    """Open a picture without decoding its pixels (its size and mode are known from the header).

    Raises InputError if the file is missing, is no picture of `FORMATS`, holds several pictures (but for a phone's
    JPEG, whose first is the photo), or has more pixels than MOST_PIXELS.
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
    """A picture as Image.open opens it; None if it begins as none of `FORMATS` does.

    Image.open would warn of large pictures, and refuse larger ones, before their size is known here.
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
    """Raise InputError for a picture or a video of no pixels, or of more than `most_pixels`."""
    if width < 1 or height < 1:
        raise InputError(f"{path} has {width} x {height} pixels; expected some")
    if width * height > most_pixels():
        raise InputError(
            f"{path} has {width} x {height} pixels; expected at most {most_pixels()} ({MOST_PIXELS} raises it)"
        )


def most_pixels() -> int:
    """How many pixels a picture may have. Raises InputError if MOST_PIXELS is set to anything but a number of them."""
    text = os.environ.get(MOST_PIXELS, "")
    if not text:
        return Image.MAX_IMAGE_PIXELS or sys.maxsize
    if not (text.isascii() and text.isdecimal() and len(text) <= 18 and int(text)):
        raise InputError(f"{MOST_PIXELS} is {text[:50]!r}; expected a number of pixels")
    return int(text)


def _reason(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def shown_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an opened picture as it is shown: turned as its EXIF orientation says. Decodes no pixels."""
    # A TIFF's size is turned already; of a PNG, Pillow would decode the pixels to look for what comes behind them.
    known = image.format not in ("PNG", "TIFF") or (image.format == "PNG" and "exif" in image.info)
    return image.size[::-1] if known and _orientation(image) > 4 else image.size


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a picture, 1 to 8; 1 where there is none that can be read, as viewers take it."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises whatever the damage leads to
        return 1
    return found if found in range(1, 9) else 1


def decode(image: Image.Image, path: Path, mode: str | None = None) -> np.ndarray:
    """Decode an opened picture into an array, turned as its EXIF orientation says, converted to `mode` if given.

    Pillow rather than OpenCV decodes, because it refuses truncated files where OpenCV fills the rest with gray;
    their pixels are the same. Raises InputError if the data end early or are damaged.
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
"""Compressions of TIFF, those of fax machines among them, whose decoders make some picture of anything."""


def _check_png(path: Path) -> None:
    """Raise ValueError for a PNG whose checksums are wrong, or that ends early; of its pixels Pillow takes any."""
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
"""What turns a picture of an EXIF orientation upright."""


def read_rgb(path: Path) -> np.ndarray:
    """Read a picture as a viewer shows it: RGB, uint8 [H, W, 3], turned as its EXIF orientation says.

    Gray of 16 bits is scaled to 8, floating point from 0 to 1 too. Raises InputError if it is missing, damaged, or
    holds numbers beyond those.
    """
    with open_image(path) as image:
        if image.mode == "F" or image.mode.startswith("I"):
            return np.repeat(_eight_bits(decode(image, path), path)[..., None], 3, axis=2)
        return decode(image, path, "RGB")


def _eight_bits(values: np.ndarray, path: Path) -> np.ndarray:
    """Gray values of another type, [H, W], as uint8."""
    most = 1.0 if values.dtype.kind == "f" else 65535.0
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= most):
        raise InputError(
            f"{path} holds values from {values.min():g} to {values.max():g}; expected 0 to {most:g} in a picture of "
            f"{'floating point' if most == 1 else '16 bits'}"
        )
    return np.round(values * (255.0 / most)).astype(np.uint8)
