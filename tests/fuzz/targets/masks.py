"""Masks in every image mode and format, undamaged or damaged, read with every option."""

import io
import random
from pathlib import Path

import numpy as np
from PIL import Image

from tests.fuzz.damage import damaged
from timecycle.data.masks import AS_STORED, MaskReading, ids_of, mask_reading, read_annotation, read_mask, write_mask


def drawn(rng: random.Random) -> np.ndarray:
    """Ids, uint8 [H, W], few or many, in rectangles or as noise."""
    height, width = rng.randrange(1, 14), rng.randrange(1, 14)
    numbers = np.random.default_rng(rng.randrange(1 << 32))
    if rng.random() < 0.2:
        return numbers.integers(0, rng.choice([2, 4, 256]), (height, width), np.uint8)
    mask = np.zeros((height, width), np.uint8)
    for _ in range(rng.randrange(5)):
        top, left = rng.randrange(height), rng.randrange(width)
        id_ = rng.choice([1, 2, 3, 7, 50, 100, 128, 200, 254, 255])
        mask[top : top + rng.randrange(1, 9), left : left + rng.randrange(1, 9)] = id_
    return mask


def stored(rng: random.Random, mask: np.ndarray) -> bytes:
    """A file of a mask, in some mode and format."""
    gray = Image.fromarray(mask)
    way = rng.randrange(10)
    image = {
        0: lambda: gray,
        1: lambda: gray.convert("RGB"),
        2: lambda: gray.convert("1"),
        3: lambda: Image.fromarray(mask.astype(np.uint16) * rng.choice([1, 257])),
        4: lambda: gray.convert("LA"),
        5: lambda: gray.convert("P"),
        6: lambda: gray.convert("RGB").quantize(rng.randrange(2, 20)),
        7: lambda: Image.fromarray(mask.astype(np.int32) * rng.choice([1, 300, -1])),
        8: lambda: Image.fromarray(mask.astype(np.float32)),
        9: lambda: Image.fromarray(np.random.default_rng(0).integers(0, 256, (*mask.shape, 4), np.uint8)),
    }[way]()
    if image.mode == "L" and rng.random() < 0.6:
        colors = rng.choice([1, 2, 5, 256])
        image.putpalette([rng.choice([0, 0, 128, 255, rng.randrange(256)]) for _ in range(3 * colors)])
    buffer = io.BytesIO()
    image.save(buffer, "TIFF" if image.mode in ("F", "I") or rng.random() < 0.1 else "PNG")
    return buffer.getvalue()


def reading(rng: random.Random) -> MaskReading:
    """Random options of reading masks."""
    words = ["3=1", "128=1", "0=0", "255=1", "7=255", "65535=1", "compact", "1=256", "=", "x=1", "9" * 20 + "=1", "²=1"]
    chosen = rng.sample(words, rng.choice([0, 0, 1, 2, 3]))
    return mask_reading(rng.random() < 0.2, rng.choice([None, None, 0, 1, 128, 255, 256]), chosen)


def check_ids(ids: np.ndarray) -> None:
    """Check that these are ids, uint8 [H, W]."""
    assert ids.dtype == np.uint8
    assert ids.ndim == 2
    assert ids.size


def case_read(rng: random.Random, folder: Path) -> None:
    """A mask in any mode, damaged in half of the cases."""
    data = stored(rng, drawn(rng))
    path = folder / "00000.png"
    path.write_bytes(damaged(rng, data) if rng.random() < 0.5 else data)
    how = reading(rng) if rng.random() < 0.7 else AS_STORED
    if rng.random() < 0.5:
        check_ids(read_annotation(path, how)[0])
    else:
        check_ids(read_mask(path, how.of_sequence(path)))


def case_written(rng: random.Random, folder: Path) -> None:
    """A written mask is read back unchanged."""
    mask = drawn(rng)
    write_mask(folder / "00000.png", mask)
    assert np.array_equal(read_mask(folder / "00000.png"), mask)


def case_memory(rng: random.Random, folder: Path) -> None:
    """Masks in memory, of any dtype and shape."""
    mask = drawn(rng)
    dtype = rng.choice([bool, np.uint8, np.int16, np.int64, np.uint64, np.float32, object, "U3", complex])
    array = mask.astype(dtype)
    way = rng.randrange(6)
    if way == 0:
        array = array[..., None].repeat(rng.choice([0, 1, 3, 4]), axis=2)
    elif way == 1:
        array = array[: rng.randrange(2), : rng.randrange(2)]
    elif way == 2:
        array = array * rng.choice([1, 2]) if array.dtype.kind in "ifu" else array[0]
    check_ids(ids_of(array))
