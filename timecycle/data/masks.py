"""Masks of object ids, in files and in memory. Does not import torch."""

import argparse
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from timecycle.data.images import decode, open_image
from timecycle.errors import InputError, listing
from timecycle.files import write_bytes

VOID = 255
LARGEST_ID = 254
LEAST_SOFT = 8  # masks with a maximum below this are not checked for soft edges
MOST_THIN = 100  # ids 1, 2, ... up to this number are not checked for soft edges
SOFT_VALUES = 3  # minimum number of values along edges only that count as soft edges
LEAST_GRAY = 50  # ids below this never count as gray values
_WEIGHTS = np.array([1 << 16, 1 << 8, 1])  # pack red, green and blue into one integer
_WEB_PALETTE = np.array(Image.new("RGB", (1, 1)).convert("P").getpalette()).reshape(-1, 3)
"""The palette of Image.convert("P")."""


def _davis_palette() -> np.ndarray:
    """The DAVIS palette, uint8 [256, 3]: bit b of an id's 3-bit groups sets color channel b, high bits first."""
    palette = np.zeros((256, 3), np.uint8)
    ids = np.arange(256)
    for group in range(8):
        for channel in range(3):
            palette[:, channel] |= (((ids >> (3 * group + channel)) & 1) << (7 - group)).astype(np.uint8)
    return palette


PALETTE = _davis_palette()


@dataclass(frozen=True)
class MaskReading:
    """How values stored in a mask file become ids; by default they are the ids. `mask_reading` makes one of options."""

    threshold: int | None = None
    """Gray values of at least this become object 1, all others background."""
    remap: tuple[tuple[int, int], ...] = ()
    """Pairs of a stored value and its id, applied simultaneously."""
    compact: bool = False
    """Renumber the ids of a sequence's first annotation 1, 2, ... in order; see `of_sequence`."""
    single: bool = False
    """All objects become object 1, as in DAVIS-2016."""

    @property
    def named(self) -> bool:
        """Whether `remap` maps values other than 255; values are then not checked for being ids."""
        return bool(set(self.remap) - {(VOID, 1)})

    def of_sequence(self, first: Path) -> "MaskReading":
        """The reading for a sequence with this first annotation: `compact` is replaced by its pairs in `remap`."""
        if not self.compact:
            return self
        given = dict(self.remap)
        ids = object_ids(read_mask(first, replace(self, compact=False)))
        places = {id_: place for place, id_ in enumerate(ids, 1)}
        pairs = {id_: place for id_, place in places.items() if id_ not in given}
        pairs |= {value: places.get(id_, 0) for value, id_ in given.items()}
        # Ids that the first annotation lacks become background; their numbers may be reused.
        pairs |= {value: 0 for value in range(1, VOID) if value not in pairs}
        return replace(self, compact=False, remap=tuple(sorted(pairs.items())))


AS_STORED = MaskReading()


def mask_reading(
    remap_255: bool = False,
    threshold: int | None = None,
    remap: Mapping[int, int] | Iterable[str] = (),
) -> MaskReading:
    """A `MaskReading` from the options of `evaluate_davis` and the command lines.

    Args:
        remap_255: read 255 as object 1.
        threshold: read gray values of at least this, 1 to 255, as object 1.
        remap: stored values and their ids, as a mapping or as one or more words `3=1`; the word `compact` renumbers the
            ids of each sequence's first annotation 1, 2, ...

    Raises InputError for values out of range and for words of another form.
    """
    if isinstance(remap, Mapping):
        words = [f"{value}={id_}" for value, id_ in remap.items()]
    else:
        words = [remap] if isinstance(remap, str) else list(remap)
    pairs = {VOID: 1} if remap_255 else {}
    for word in words:
        value, equals, id_ = word.partition("=")
        if word == "compact":
            continue
        numbers = equals and all(n.isdecimal() and n.isascii() and len(n) <= 5 for n in (value, id_))
        if not numbers or int(id_) > VOID:
            raise InputError(f"--remap {word[:50]} is not a pair; expected VALUE=ID, such as 3=1, or compact")
        pairs[int(value)] = int(id_)
    if threshold is not None and not (isinstance(threshold, int) and 1 <= threshold <= VOID):
        raise InputError(f"--threshold is {threshold!r}; expected a gray value from 1 to {VOID}")
    if threshold is not None and (pairs or "compact" in words):
        raise InputError("--threshold and --remap are both given; expected one of them")
    return MaskReading(threshold, tuple(sorted(pairs.items())), "compact" in words)


def add_mask_options(parser: argparse._ActionsContainer) -> None:
    """Add the options that `masks_of` reads."""
    parser.add_argument("--remap-255", action="store_true", help="read masks stored as 0/255: 255 is object 1")
    parser.add_argument(
        "--threshold",
        type=int,
        metavar="GRAY",
        help="read masks with soft edges: values of at least GRAY are object 1",
    )
    parser.add_argument(
        "--remap",
        nargs="+",
        default=[],
        metavar="VALUE=ID",
        help="read masks with other values, such as 128=1; compact: renumber the first annotation's ids 1, 2, ...",
    )


def masks_of(arguments: argparse.Namespace) -> MaskReading:
    """The `MaskReading` of parsed arguments."""
    return mask_reading(arguments.remap_255, arguments.threshold, arguments.remap)


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask of ids, uint8 [H, W], as a PNG with the DAVIS palette, atomically.

    Raises InputError if the file cannot be written.
    """
    write_bytes(path, mask_png(mask))


def mask_png(mask: np.ndarray) -> bytes:
    """Encode a mask of ids, uint8 [H, W], as the bytes of a PNG with the DAVIS palette."""
    image = Image.fromarray(np.ascontiguousarray(mask, np.uint8))
    image.putpalette(PALETTE.ravel().tolist())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def read_mask(path: Path, reading: MaskReading = AS_STORED) -> np.ndarray:
    """Read a mask file, with its EXIF orientation applied.

    Args:
        path: the file.
        reading: how stored values become ids.

    Returns:
        uint8 [H, W] of object ids; 0 is background, 255 void.

    Ids are the indices of a palette PNG, the values of an 8- or 16-bit gray PNG, or 0 and 1 of a bilevel one; in RGB
    and RGBA images, and for palettes in another order, they are looked up by the DAVIS palette's colors.

    Raises InputError if the file is missing, damaged, or holds anything else.
    """
    return _read(path, reading)[0]


def read_annotation(path: Path, reading: MaskReading = AS_STORED) -> tuple[np.ndarray, list[str]]:
    """Read a sequence's first annotation as `read_mask`, with notes for the user on its ids.

    Raises InputError, naming the file and an option, for images that are not masks of ids: black and white, soft edges,
    gray values.
    """
    mask, values = _read(path, reading)
    if values is not None and reading.threshold is None:
        refuse_soft_edges(values, str(path), "--threshold 128 makes all lighter values one object")
    refuse_black_and_white(mask, str(path), "--remap-255 reads 255 as object 1")
    if values is not None and not reading.named:
        refuse_gray_values(mask, str(path), "--threshold 128, or --remap 128=1 200=2")
    return mask, _notes(mask, path)


def ids_of(array: np.ndarray) -> np.ndarray:
    """Convert a mask in memory to uint8 [H, W] of object ids, by the rules for files.

    Args:
        array: bool or integers from 0 to 255, [H, W]; or uint8 [H, W, 3] in the DAVIS palette's colors.

    Raises InputError for anything else, and for images that are not masks of ids.
    """
    what = f"mask is {array.dtype} {list(array.shape)}"
    if not array.size or array.ndim not in (2, 3):
        raise InputError(f"{what}; expected integers or bool [H, W] of object ids")
    if array.ndim == 3:
        if array.dtype != np.uint8 or array.shape[2] != 3:
            raise InputError(f"{what}; expected object ids [H, W], or uint8 [H, W, 3] in the DAVIS palette's colors")
        if (array[..., :1] != array).any():
            return _by_color(array, "mask")
        array = array[..., 0]
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{what}; expected integers or bool [H, W] of object ids")
    if array.min() < 0 or array.max() > VOID:
        raise InputError(f"mask holds values from {array.min()} to {array.max()}; expected object ids from 0 to {VOID}")
    mask = array.astype(np.uint8)
    refuse_soft_edges(mask, "mask", "mask > 127 is one object")
    refuse_black_and_white(mask, "mask", "mask == 255 is one object")
    refuse_gray_values(mask, "mask", "mask > 0 is one object")
    return mask


def refuse_black_and_white(mask: np.ndarray, name: str, remedy: str) -> None:
    """Raise InputError for a mask with only the values 0 and 255, which are background and void in DAVIS."""
    if not object_ids(mask) and (mask == VOID).any():
        raise InputError(
            f"{name} holds only the values 0 and 255, where 255 is void in DAVIS; expected ids 1, 2, ... ({remedy})"
        )


def refuse_soft_edges(values: np.ndarray, name: str, remedy: str) -> None:
    """Raise InputError for a mask, uint8 [H, W], with interpolated values along its edges.

    Such a value never fills a 3 x 3 neighborhood, and at least half of its pixels have both a darker and a lighter
    neighbor. Values 1, 2, ... without gaps count as ids, however thin their areas.
    """
    ids = object_ids(values)
    if values.max() < LEAST_SOFT or ids == list(range(1, min(len(ids), MOST_THIN) + 1)):
        return
    least, most = cv2.erode(values, np.ones((3, 3))), cv2.dilate(values, np.ones((3, 3)))
    area = np.bincount(values.ravel(), minlength=256)
    inside = np.bincount(values[least == most], minlength=256)
    between = np.bincount(values[(least < values) & (values < most)], minlength=256)
    soft = np.flatnonzero((area > 0) & (inside == 0) & (2 * between >= area))
    if len(soft) >= SOFT_VALUES:
        raise InputError(
            f"{name} has soft edges: {len(soft)} values, such as {listing(soft)}, occur only along edges; expected "
            f"object ids ({remedy})"
        )


def refuse_gray_values(mask: np.ndarray, name: str, remedy: str) -> None:
    """Raise InputError for ids that are large and far apart, such as 128, or 100 and 200: gray values."""
    ids = object_ids(mask)
    if ids and ids[-1] >= LEAST_GRAY and ids[-1] > 4 * len(ids) and not _palette_in_gray(ids):
        raise InputError(
            f"{name} holds the gray {'value' if len(ids) == 1 else 'values'} {listing(ids)}; expected object ids 1, 2, "
            f"... ({remedy})"
        )


def object_ids(mask: np.ndarray) -> list[int]:
    """The object ids in a mask, uint8 [H, W], ascending."""
    return [i for i in np.flatnonzero(np.bincount(mask.ravel())).tolist() if i not in (0, VOID)]


def _notes(mask: np.ndarray, path: Path) -> list[str]:
    """Notes on the ids of a first annotation, uint8 [H, W]."""
    ids = object_ids(mask)
    if not ids or ids[-1] == len(ids):
        return []
    gray = ", the DAVIS palette's colors turned gray," if _palette_in_gray(ids) else ""
    return [
        f"{path} holds the {'id' if len(ids) == 1 else 'ids'} {listing(ids)}{gray} of 1 to {ids[-1]}; the missing "
        "ids are not scored, while the official code scores each as a perfect object (--remap compact makes them 1, "
        "2, ...)"
    ]


def _palette_in_gray(ids: list[int]) -> bool:
    """Whether these are the first colors of the DAVIS palette as Pillow converts them to gray."""
    grays = np.array(Image.fromarray(PALETTE[None, 1 : len(ids) + 1]).convert("L"))[0]
    return ids == sorted(grays.tolist())


def _read(path: Path, reading: MaskReading) -> tuple[np.ndarray, np.ndarray | None]:
    """The ids, and the gray values, uint8, that they were read from (None for other images)."""
    with open_image(path) as image:
        if reading.threshold is not None:
            gray = _narrow(decode(image, path), path) if image.mode.startswith("I") else decode(image, path, "L")
            return (gray >= reading.threshold).astype(np.uint8), gray
        stored, gray_scale = _stored(image, path, reading.named)
    ids = stored.copy() if reading.remap else stored
    for value, id_ in reading.remap:
        ids[stored == value] = id_
    if ids.max(initial=0) > VOID:
        raise InputError(f"{path} holds the value {ids.max()}; expected object ids from 0 to {VOID} (--remap VALUE=ID)")
    if reading.single:
        ids = ids > 0
    return ids.astype(np.uint8), np.minimum(stored, VOID).astype(np.uint8) if gray_scale else None


def _stored(image: Image.Image, path: Path, named: bool) -> tuple[np.ndarray, bool]:
    """The stored values of an opened image, int [H, W], and whether they are gray values."""
    mode = image.mode
    if mode == "P":
        indices = decode(image, path)  # first, since it raises InputError for a damaged file
        return _by_palette(indices, np.array(image.getpalette("RGB") or []).reshape(-1, 3), path, named)
    if mode == "1":
        return decode(image, path).astype(np.uint8), False
    if mode == "L" or mode.startswith("I"):
        values = decode(image, path)
        return values if mode == "L" else np.where(values == 65535, VOID, values).astype(np.int64), True
    if mode in ("LA", "RGB", "RGBA"):
        pixels = decode(image, path, "RGBA")
        colors, alpha = pixels[..., :3], pixels[..., 3]
        if not np.isin(alpha, (0, 255)).all():
            raise InputError(f"{path} is partly transparent; expected object ids, fully opaque or transparent")
        colors[alpha == 0] = 0
        if (colors[..., :1] == colors).all():
            return colors[..., 0], True
        return _by_color(colors, str(path)), False
    raise InputError(f"{path} is an image of mode {mode}; expected object ids in a palette or 8-bit gray PNG")


def _by_palette(indices: np.ndarray, palette: np.ndarray, path: Path, named: bool) -> tuple[np.ndarray, bool]:
    """The ids of a palette image, by its indices or its colors, and whether they are gray values."""
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=256))
    if len(palette) <= used[-1]:
        return indices, True
    colors = palette[used]
    if (colors == used[:, None]).all():  # gray, index by index
        return indices, True
    if named or (colors == PALETTE[used]).all():
        return indices, False
    known = {tuple(color) for color in PALETTE.tolist()}
    if all(tuple(color) in known for color in colors.tolist()) and (colors[:, :1] != colors).any():
        return _by_color(palette[indices].astype(np.uint8), str(path)), False
    if palette.shape == _WEB_PALETTE.shape and (palette == _WEB_PALETTE).all():
        raise InputError(
            f"{path} has the palette of web colors, as programs make of images in color, whose indices are not ids; "
            "expected object ids (--remap INDEX=ID uses the indices)"
        )
    black = used[(colors == 0).all(1)]
    if (colors[0] != 0).any() if used[0] == 0 else len(black):
        where = f"black at index {black[0]}" if len(black) else f"{tuple(colors[0].tolist())} at index 0"
        raise InputError(
            f"{path} has a palette with {where}, so the index of the background is unknown; expected 0 (--remap "
            "INDEX=ID, such as 0=0, uses the indices)"
        )
    return indices, False


def _by_color(rgb: np.ndarray, name: str) -> np.ndarray:
    """The ids, uint8 [H, W], of DAVIS palette colors, uint8 [H, W, 3]."""
    wanted = PALETTE.astype(np.int64) @ _WEIGHTS
    order = np.argsort(wanted)
    packed = rgb.astype(np.int64) @ _WEIGHTS
    place = np.searchsorted(wanted[order], packed).clip(max=len(wanted) - 1)
    unknown = rgb[wanted[order][place] != packed]
    if len(unknown):
        colors = np.unique(unknown, axis=0)
        raise InputError(
            f"{name} is an image of mode RGB with {len(colors)} colors that the DAVIS palette does not have, such as "
            f"{tuple(colors[0].tolist())}; expected object ids in a palette or 8-bit gray PNG"
        )
    return order[place].astype(np.uint8)


def _narrow(values: np.ndarray, path: Path) -> np.ndarray:
    """16-bit gray as uint8; unchanged if all values are below 256."""
    if values.min() < 0 or values.max() > 65535:
        raise InputError(f"{path} holds values from {values.min()} to {values.max()}; expected 16 bits")
    return (values // (257 if values.max() > VOID else 1)).astype(np.uint8)
