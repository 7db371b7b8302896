"""Files in and out: pictures decoded with damage refused, results written whole or not at all. Knows no torch."""

import os
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from timecycle.errors import InputError

VIDEO_SUFFIXES = {
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv",
}  # fmt: skip


def open_image(path: Path) -> Image.Image:
    """Open a picture without decoding its pixels (its size and mode are known from the header).

    Raises InputError if the file is missing or is not a picture.
    """
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; expected a picture there") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(f"{path} cannot be read as a picture ({error}); expected a JPEG or PNG file") from None


def decode(image: Image.Image, path: Path, mode: str | None = None) -> np.ndarray:
    """Decode an opened picture into an array, converted to `mode` if given.

    Pillow rather than OpenCV decodes, because it refuses truncated files where OpenCV fills the rest with grey;
    their pixels are the same. Raises InputError if the data end early or are damaged.
    """
    try:
        return np.array(image.convert(mode) if mode else image)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} is damaged or truncated ({error}); expected a complete JPEG or PNG file") from None


def read_rgb(path: Path) -> np.ndarray:
    """Read a picture as RGB, uint8 [H, W, 3]. Raises InputError if it is missing or damaged."""
    with open_image(path) as image:
        return decode(image, path, "RGB")


def video_files(folder: Path) -> list[Path]:
    """Every video file in a folder and its subfolders, known by suffix, in the order of their paths.

    Links are followed, but no folder is entered twice; names with a leading dot are passed over.
    Raises InputError if the folder is missing or holds no video files.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected one with video files")
    entered: set[str] = set()
    paths = []
    for root, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        if (place := os.path.realpath(root)) in entered:
            folders.clear()
            continue
        entered.add(place)
        paths += [
            Path(root, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES
        ]
    if not paths:
        raise InputError(f"{folder} holds no video files; expected some with suffixes such as .mp4 or .webm")
    return sorted(paths)


def partial_path(path: Path) -> Path:
    """Where a result grows before it is moved to `path`: beside it, hidden from listings, apart from other runs'."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it is there completely or not at all, also when the program is killed meanwhile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    partial.write_bytes(data)
    os.replace(partial, path)
