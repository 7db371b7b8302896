"""Mask files as people make them, in any program, read as object ids. Does not import torch.

`timecycle.data.masks` reads masks of ids and refuses the rest; here the rest is understood if it can be, and notes say
how: black and white, any distinct colors, cut-outs with transparency, soft edges, lossy compression.
"""

from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from timecycle.data.images import decode, open_image
from timecycle.data.masks import LARGEST_ID, PALETTE, VOID, object_ids, read_annotation
from timecycle.errors import InputError, listing

LOSSY = ("JPEG", "MPO", "WEBP")
"""Pillow's formats whose pixels are not those that were stored."""
MOST_COLORS = 64  # main colors of a mask whose other colors are edges or noise
LEAST_FLAT = 0.5  # share of a mask's pixels that look like their neighbors
MANY = 20  # values or colors beyond which a mask must have flat areas
FLAT = 10  # range of a channel among the neighbors of such a pixel
NEAR = 24.0  # distance of noise from a color, in 8-bit RGB
APART = 48.0  # of two main colors if there is noise
SAME_ASPECT = 0.02
_PACK = np.array([1 << 16, 1 << 8, 1])
_NAMES = {
    "black": (0, 0, 0), "white": (255, 255, 255), "gray": (128, 128, 128), "red": (255, 0, 0), "green": (0, 255, 0),
    "blue": (0, 0, 255), "yellow": (255, 255, 0), "cyan": (0, 255, 255), "magenta": (255, 0, 255),
    "orange": (255, 128, 0), "dark red": (128, 0, 0), "dark green": (0, 128, 0), "dark blue": (0, 0, 128),
    "olive": (128, 128, 0), "teal": (0, 128, 128), "purple": (128, 0, 128), "pink": (255, 160, 180),
}  # fmt: skip


def read_any_mask(path: Path) -> tuple[np.ndarray, list[str]]:
    """Read a mask file as people make them, in any program.

    Args:
        path: the file.

    Returns:
        Object ids, uint8 [H, W] (0 background, 255 void), and notes on how the file was understood.

    A mask may be a palette image or an 8- or 16-bit map of ids; black and white (white, from gray 128 on, is object 1);
    an image with transparent parts (colors if they are few, else what is opaque is object 1); or in distinct colors.
    Black is the background, without black the most frequent color of the border. Colors of the DAVIS palette other than
    grays keep their ids; the others become the free ids from 1 in the order in which they appear, row by row. With soft
    edges or lossy compression each pixel takes the nearest of the main colors.

    Raises InputError if the file is missing, damaged or a photograph, holds no object or more than 254, or colors that
    cannot be told apart.
    """
    ids, notes = _understood(path)
    found = object_ids(ids)
    if not found:
        raise InputError(f"{path} holds no object, only background; expected a mask with at least one object")
    return ids, notes or [f"{path.name}: {'object' if len(found) == 1 else 'objects'} {listing(found)}, as stored"]


def fit_mask(ids: np.ndarray, size: tuple[int, int], path: Path, resize: bool) -> np.ndarray:
    """A mask at the size of a frame: unchanged, or scaled by nearest neighbor.

    Args:
        ids: uint8 [H, W].
        size: height and width of the frame.
        path: the mask's file, for error messages.
        resize: whether it may be scaled.

    Raises InputError if sizes differ without `resize`, aspect ratios by more than 2 %, or an object vanishes.
    """
    if ids.shape == size:
        return ids
    what = f"{path} is {ids.shape[1]} x {ids.shape[0]}; expected {size[1]} x {size[0]}, the frame's size"
    ratio = ids.shape[1] * size[0] / (ids.shape[0] * size[1])
    if not 1 - SAME_ASPECT <= ratio <= 1 + SAME_ASPECT:
        raise InputError(f"{what}, or at least its aspect ratio")
    if not resize:
        raise InputError(f"{what} (--resize-masks enlarges or shrinks it)")
    fitted = np.array(Image.fromarray(ids).resize(size[::-1], Image.Resampling.NEAREST))
    if lost := sorted(set(object_ids(ids)) - set(object_ids(fitted))):
        raise InputError(f"{path} loses object {listing(lost)} at {size[1]} x {size[0]}; expected larger objects")
    return fitted


def _understood(path: Path) -> tuple[np.ndarray, list[str]]:
    """As `read_any_mask`, without notes on ids that are as stored, and possibly without objects."""
    with open_image(path) as image:
        lossy = image.format in LOSSY
        wide = image.mode.startswith("I")
        transparent = image.has_transparency_data
        pixels = decode(image, path, None if wide else "RGBA")
    if wide:
        return _of_numbers(pixels, path)
    colors, alpha = pixels[..., :3], pixels[..., 3]
    if transparent and (alpha <= 127).any():
        return _of_transparent(colors, alpha > 127, path)
    if not lossy:
        try:
            ids = read_annotation(path)[0]
        except InputError:  # not ids as they are stored; the file itself is sound
            pass
        else:
            if np.count_nonzero(np.bincount(ids.ravel())) > MANY and _flat(ids[..., None], 0).mean() < LEAST_FLAT:
                raise _photograph(path)
            return ids, []
    return _of_colors(colors, path, lossy)


def _of_numbers(values: np.ndarray, path: Path) -> tuple[np.ndarray, list[str]]:
    """Of a 16-bit image."""
    stored = np.unique(values)
    if stored[-1] <= VOID or 65535 in stored[1:]:
        if len(stored) > 2 and 65535 in stored:
            return _of_colors(np.repeat((values // 257).astype(np.uint8)[..., None], 3, axis=2), path, False)
        if 65535 in stored or stored.tolist() == [0, VOID]:
            return (values > 0).astype(np.uint8), [f"{path.name}: white is object 1"]
        return values.astype(np.uint8), []
    numbers = [n for n in stored.tolist() if n]
    if len(numbers) > LARGEST_ID:
        raise InputError(f"{path} holds {len(numbers)} values; expected at most {LARGEST_ID} objects")
    ids = np.searchsorted([0, *numbers], values).astype(np.uint8)
    return ids, [f"{path.name}: value {number} is object {i}" for i, number in enumerate(numbers, 1)]


def _of_transparent(colors: np.ndarray, opaque: np.ndarray, path: Path) -> tuple[np.ndarray, list[str]]:
    """Of an image with transparent parts: colors if they are few, else the opaque part is one object."""
    packed = (colors.astype(np.int64) @ _PACK)[opaque]
    if 1 < len(np.unique(packed)) <= MANY:
        ids, notes = _of_colors(np.where(opaque[..., None], colors, np.uint8(0)), path, False)
        return ids, [*notes, f"{path.name}: what is transparent is background"]
    return opaque.astype(np.uint8), [f"{path.name}: what is opaque is object 1"]


def _of_colors(colors: np.ndarray, path: Path, lossy: bool) -> tuple[np.ndarray, list[str]]:
    """Of colors, uint8 [H, W, 3]."""
    kinds, index = _distinct(colors)
    notes = []
    if lossy or len(kinds) > MANY or _has_soft_edges(kinds, index):
        main = _main_colors(colors, path)
        noise = f"{path.name}: soft edges or noise; every pixel takes the nearest of {len(main)} colors"
        if len(main) == 2 and np.ptp(main, axis=1).max() <= FLAT and main.min() < 64 and main.max() >= 192:
            noise = f"{path.name}: soft edges or noise; gray values from 128 on are white"
            index, kinds = (
                (colors.mean(axis=2) >= 127.5).astype(np.int64),
                np.array([(0, 0, 0), (255, 255, 255)], np.uint8),
            )
        else:
            kinds, index = main, _nearest(colors, main)
        notes = [noise]
    ids, named = _numbered(kinds, index, path)
    return ids, named + notes


def _distinct(colors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The colors that occur, uint8 [C, 3], and the index of every pixel's, [H, W]."""
    packed, index = np.unique(colors.astype(np.int64) @ _PACK, return_inverse=True)
    kinds = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1).astype(np.uint8)
    return kinds, index.reshape(colors.shape[:2])


def _has_soft_edges(kinds: np.ndarray, index: np.ndarray) -> bool:
    """Whether a color fills no 3 x 3 neighborhood and lies between two colors that do."""
    values = index.astype(np.uint8)
    inside = cv2.erode(values, np.ones((3, 3))) == cv2.dilate(values, np.ones((3, 3)))
    solid = np.unique(index[inside])
    thin = np.setdiff1d(np.arange(len(kinds)), solid)
    points = kinds.astype(np.float64)
    for a, b in combinations(points[solid], 2):
        along = b - a
        place = ((points[thin] - a) @ along / (along @ along))[:, None]
        off = np.linalg.norm(points[thin] - a - place * along, axis=1)
        if ((off < FLAT) & (place[:, 0] > 0) & (place[:, 0] < 1)).any():
            return True
    return False


def _flat(values: np.ndarray, most: int) -> np.ndarray:
    """Pixels of an image, uint8 [H, W, C], in whose 3 x 3 neighborhood each channel varies by `most`: bool [H, W]."""
    square = np.ones((3, 3), np.uint8)
    ranges = [cv2.dilate(channel, square) - cv2.erode(channel, square) for channel in np.moveaxis(values, 2, 0)]
    return np.max(ranges, axis=0) <= most


def _main_colors(colors: np.ndarray, path: Path) -> np.ndarray:
    """The colors of the flat areas of an image, uint8 [C, 3], the most frequent first.

    Raises InputError if there are too many or too few such areas, or two colors that noise could mix up.
    """
    flat = _flat(colors, FLAT)
    if flat.mean() < LEAST_FLAT:
        raise _photograph(path)
    kinds, counts = np.unique(colors[flat].astype(np.int64) @ _PACK, return_counts=True)
    points = np.stack([kinds >> 16, kinds >> 8 & 255, kinds & 255], axis=1).astype(np.float64)
    main: list[np.ndarray] = []
    least = max(9, 1e-4 * flat.size)
    while counts.sum() >= least:
        center = points[counts.argmax()]
        near = np.linalg.norm(points - center, axis=1) <= NEAR
        if counts[near].sum() >= least:
            main.append(center)
        if len(main) > MOST_COLORS:
            raise _photograph(path)
        points, counts = points[~near], counts[~near]
    for a, b in combinations(main, 2):
        if np.linalg.norm(a - b) < APART:
            raise InputError(
                f"{path} has soft edges or noise and the colors {_tuple(a)} and {_tuple(b)}, too alike to be told "
                "apart; expected a PNG of distinct colors without soft edges"
            )
    return np.array(main).astype(np.uint8)


def _nearest(colors: np.ndarray, main: np.ndarray) -> np.ndarray:
    """The index of the nearest color, int64 [H, W]; ties go to the more frequent."""
    kinds, index = _distinct(colors)
    away = np.square(kinds[:, None].astype(np.int64) - main[None].astype(np.int64)).sum(axis=2)
    return away.argmin(axis=1)[index]


def _numbered(kinds: np.ndarray, index: np.ndarray, path: Path) -> tuple[np.ndarray, list[str]]:
    """Ids of colors, uint8 [C, 3], by pixels [H, W] of their indices, and notes on which is which."""
    present, first = np.unique(index, return_index=True)
    order = present[np.argsort(first)].tolist()
    black = [c for c in order if np.linalg.norm(kinds[c].astype(float)) <= NEAR]
    border = np.concatenate([index[0], index[-1], index[:, 0], index[:, -1]])
    background = black[0] if black else int(np.bincount(border).argmax())
    objects = [c for c in order if c != background]
    if len(objects) > LARGEST_ID:
        raise InputError(f"{path} holds {len(objects)} colors; expected at most {LARGEST_ID} objects")
    known = {color: i for i, color in enumerate(map(tuple, PALETTE.tolist())) if len(set(color)) > 1}
    ids = {c: known[color] for c in objects if (color := tuple(kinds[c].tolist())) in known}
    free = iter(sorted(set(range(1, VOID)) - set(ids.values())))
    for c in objects:
        if c not in ids:
            ids[c] = next(free)
    table = np.zeros(len(kinds), np.uint8)
    table[list(ids)] = list(ids.values())
    notes = [f"{path.name}: {_named(kinds[c])} is object {ids[c]}" for c in objects if ids[c] != VOID]
    if not black:
        notes.append(f"{path.name}: {_named(kinds[background])}, the most frequent color of the border, is background")
    return table[index], notes


def _named(color: np.ndarray) -> str:
    """A color in words and numbers."""
    name = min(_NAMES, key=lambda name: float(np.linalg.norm(color.astype(float) - _NAMES[name])))
    return f"{name} {_tuple(color)}"


def _tuple(color: np.ndarray) -> tuple[int, ...]:
    return tuple(int(channel) for channel in color)


def _photograph(path: Path) -> InputError:
    return InputError(f"{path} is no mask but looks like a photograph; expected object ids, or a few distinct colors")
