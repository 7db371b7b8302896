"""Index masks on disk (palette PNG) and in memory. Scorer and propagation share it, so it must not import torch."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from timecycle.errors import InputError
from timecycle.files import decode, open_image, write_bytes

VOID = 255


def _davis_palette() -> np.ndarray:
    """The DAVIS palette, uint8 [256, 3]: bit b of the id's 3-bit groups sets colour channel b, high bits first."""
    palette = np.zeros((256, 3), np.uint8)
    ids = np.arange(256)
    for group in range(8):
        for channel in range(3):
            palette[:, channel] |= (((ids >> (3 * group + channel)) & 1) << (7 - group)).astype(np.uint8)
    return palette


PALETTE = _davis_palette()


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write ids, uint8 [H, W], as a palette PNG with the DAVIS palette, atomically."""
    image = Image.fromarray(np.ascontiguousarray(mask, np.uint8))
    image.putpalette(PALETTE.ravel().tolist())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def read_mask(path: Path, remap_255: bool = False) -> np.ndarray:
    """Read an index mask: uint8 [H, W] of object ids (0 background, 255 void).

    `remap_255` reads the value 255 as object 1, for masks that are stored as black and white pictures.
    Raises InputError if the file is missing, damaged, or not a palette or grey PNG.
    """
    with open_image(path) as image:
        if image.mode not in ("P", "L", "1"):
            raise InputError(
                f"{path} is a picture of mode {image.mode}; expected object ids in a palette or 8-bit grey PNG"
            )
        # Mode "1" decodes to booleans: white is object 1.
        mask = decode(image, path).astype(np.uint8)
    if remap_255:
        mask[mask == VOID] = 1
    return mask


def check_not_black_and_white(path: Path, mask: np.ndarray) -> None:
    """Refuse an annotation whose only values are 0 and 255, which DAVIS reads as background and void.

    Raises InputError naming the file and the option that remaps it.
    """
    values = np.unique(mask)
    if VOID in values and not set(values.tolist()) - {0, VOID}:
        raise InputError(
            f"{path} holds no ids but 0 and 255, and 255 means void in DAVIS; "
            "expected object ids 1, 2, ... (--remap-255 reads 255 as object 1)"
        )
