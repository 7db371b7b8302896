"""Sequences: folders of frames and annotations, and lists of them, checked when read. Does not import torch."""

import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from timecycle.data.images import decode, open_image, shown_size
from timecycle.data.masks import AS_STORED, MaskReading, read_annotation, read_mask
from timecycle.errors import InputError, said
from timecycle.files import PREPARED, component, fields, natural_key, read_json, read_lines

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
FASTEST = 1000.0  # frames per second, maximum that a prepared folder may state
MASK_VALUES = 8  # so many values cover 90 % of a mask's pixels, but not of a gray image's
DARK = 1 << 13  # 16-bit frames whose maximum is below this are reported
LONGEST_LINE = 1500  # characters, of two paths
Names = list[str] | int | None
"""Which sequences: those with these names; so many, evenly spaced in their list; or all."""


@dataclass(frozen=True)
class Sequence:
    """One video with annotations."""

    name: str
    """Of the sequence, and of its folder in results."""
    frames: tuple[Path, ...]
    """Image files, in order."""
    annotations: tuple[Path, ...]
    """Mask files of all frames, or only of the first."""
    masks: MaskReading = AS_STORED
    """How the annotations are read."""
    notes: tuple[str, ...] = ()
    """Notes for the user, a sentence each."""
    fps: float | None = None
    """Frames per second, if the folder of frames states it."""

    @property
    def scored(self) -> bool:
        """Whether every frame is annotated, so that masks can be scored."""
        return len(self.annotations) == len(self.frames)

    def every(self, step: int) -> "Sequence":
        """The sequence of frames 0, `step`, 2 `step`, ... and their annotations."""
        fps = None if self.fps is None else self.fps / step
        return replace(self, frames=self.frames[::step], annotations=self.annotations[::step], fps=fps)


def read_sequences(
    folders: dict[str, tuple[Path, Path]], names: Names, masks: MaskReading, source: object
) -> list[Sequence]:
    """The sequences of folders of frames and annotations, by name: all, those with the given names, or so many."""
    if isinstance(names, int):
        names = _evenly(list(folders), names, source)
    if isinstance(names, str) or names == []:
        raise InputError(f"sequences is {said(repr(names))}; expected a list of names, or a number of sequences")
    for name in names or []:
        if name not in folders:
            raise InputError(f"--sequences {said(name)} is not in {source}; expected some of {', '.join(folders)}")
    return [_read_sequence(name, *pair, masks) for name, pair in folders.items() if not names or name in names]


def of_every(step: int, sequences: list[Sequence], argument: str) -> list[Sequence]:
    """`Sequence.every` for all. Raises InputError, naming the argument, if `step` is not a number of frames."""
    if not isinstance(step, int) or step < 1:
        raise InputError(f"{argument} is {step!r}; expected a whole number of frames, 1 or more")
    return sequences if step == 1 else [sequence.every(step) for sequence in sequences]


def _evenly(names: list[str], count: int, source: object) -> list[str]:
    """So many of the names, from the first on, evenly spaced."""
    if not 1 <= count <= len(names):
        raise InputError(
            f"sequences is {count}; expected 1 to {len(names)}, as many as {source} has, or a list of names"
        )
    return [names[i * len(names) // count] for i in range(count)]


def annotation_files(folder: Path) -> list[Path]:
    """The annotation files in a folder, in order. Raises InputError if there are none."""
    return files_in(folder, (".png",), "annotations")


def read_filelist(path: Path, names: list[str] | None = None, masks: MaskReading = AS_STORED) -> list[Sequence]:
    """The sequences of a list with lines `frames-folder annotations-folder`, the original program's format.

    Args:
        path: the list. Paths with blanks are quoted, or the two are separated by a tab. Relative folders are looked up
            in the working directory, then in the list's folder.
        names: only these sequences. A sequence is named after its frames' folder, with as many parent folders as make
            the name unique.
        masks: how annotations are read.

    Raises InputError naming the list and line, or the file, for anything invalid.
    """
    folders: list[tuple[Path, Path]] = []
    for number, line in enumerate(read_lines(path, "a list with lines 'frames-folder annotations-folder'"), start=1):
        if not line.strip():
            continue
        if len(line) > LONGEST_LINE:
            raise InputError(f"{path} line {number} has {len(line)} characters; expected {LONGEST_LINE} at most")
        words = [Path(word) for word in fields(line)]
        if len(words) != 2:
            raise InputError(
                f"{path} line {number} has {len(words)} words; expected a frames folder and an annotations folder, in "
                "quotes if there are blanks in their paths"
            )
        frames, annotations = (f if f.is_absolute() or os.path.isdir(f) else path.parent / f for f in words)
        if frames in [earlier for earlier, _ in folders]:
            raise InputError(f"{path} line {number} names a second sequence {frames.name}; expected each folder once")
        folders.append((frames, annotations))
    if not folders:
        raise InputError(f"{path} is empty; expected lines 'frames-folder annotations-folder'")
    found = distinct_names([frames for frames, _ in folders])
    sequences = {component(name, path): pair for name, pair in zip(found, folders, strict=True)}
    return read_sequences(sequences, names, masks, path)


def distinct_names(folders: list[Path]) -> list[str]:
    """The last component of each path, or as many last components, joined by "-", as make it unique."""
    parts = [folder.absolute().parts[1:] for folder in folders]
    names = [""] * len(folders)
    for count in range(1, max(map(len, parts)) + 1):
        tails = ["-".join(part[-count:]) for part in parts]
        often = Counter([*tails, *(name for name in names if name)])
        names = [name or (tail if often[tail] == 1 else "") for name, tail in zip(names, tails, strict=True)]
    return [name or f"{i}-{folder.name}" for i, (name, folder) in enumerate(zip(names, folders, strict=True))]


def files_in(folder: Path, suffixes: tuple[str, ...], what: str) -> list[Path]:
    """Files with one of the suffixes, in natural order of their names: frame8, frame9, frame10.

    Names with a leading dot, left by file managers and killed runs, are ignored. Raises InputError if the folder is
    missing, cannot be read or holds no such file. what: the kind of files, for error messages.
    """
    if not os.path.isdir(folder):  # Path.is_dir would raise OSError for names that are too long
        raise InputError(f"{folder} does not exist; expected a folder of {what}")
    try:
        files = [p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}); expected a folder of {what}") from None
    if not files:
        raise InputError(f"{folder} holds no {what}; expected files ending in {' or '.join(suffixes)}")
    return sorted(files, key=lambda path: (natural_key(path.stem), path.suffix))


def frame_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The frames of a video in natural order, and a note on each mask among them, which is skipped.

    Raises InputError if there are none, or two files differ only in their suffix.
    """
    frames = files_in(folder, FRAME_SUFFIXES, "frames")
    others = [path for path in frames if path.suffix.lower() != ".png"]
    names, forms = {path.stem for path in others}, {_form(path) for path in others}
    # A PNG named like the other frames, with a number of its own, is a frame, whatever it shows.
    beside = [path for path in frames if others and path not in others]
    odd = [path for path in beside if (path.stem in names or _form(path) not in forms) and _is_mask(path)]
    frames = [path for path in frames if path not in odd]
    stems: dict[str, Path] = {}
    for path in frames:
        if path.stem in stems:
            raise InputError(f"{path} and {stems[path.stem].name} have the same name; expected one frame of each name")
        stems[path.stem] = path
    return frames, [f"{path} is a mask among frames, and is skipped" for path in odd]


def _form(path: Path) -> str:
    """A file's name with its numbers replaced by 0."""
    return re.sub(r"\d+", "0", path.stem)


def _is_mask(path: Path) -> bool:
    """Whether an image looks like a mask rather than a frame: few values cover most of its pixels."""
    try:
        with open_image(path) as image:
            stored = decode(image, path) if image.mode == "P" else read_mask(path)
    except InputError:
        return False
    counts = np.bincount(stored.ravel())
    return bool(np.sort(counts)[-MASK_VALUES:].sum() > 0.9 * counts.sum())


def _read_sequence(name: str, frames_folder: Path, masks_folder: Path, masks: MaskReading) -> Sequence:
    """List and check one sequence: matching names and counts, equal sizes, a usable first annotation."""
    frames, notes = frame_files(frames_folder)
    annotations = annotation_files(masks_folder)
    if annotations[0].stem != frames[0].stem:
        raise InputError(
            f"{masks_folder / (frames[0].stem + '.png')} does not exist; expected the first frame's annotation"
        )
    if len(annotations) not in (1, len(frames)):
        raise InputError(
            f"{masks_folder} holds {len(annotations)} annotations for {len(frames)} frames in {frames_folder}; "
            "expected one for every frame, or only for the first"
        )
    for frame, annotation in zip(frames, annotations, strict=False):
        if frame.stem != annotation.stem:
            raise InputError(f"{frame} has no annotation {masks_folder / (frame.stem + '.png')}; expected equal names")
    check_sizes([*frames, *annotations])
    notes += _dark(frames[0])
    masks = masks.of_sequence(annotations[0])
    notes += read_annotation(annotations[0], masks)[1]
    return Sequence(name, tuple(frames), tuple(annotations), masks, tuple(notes), prepared_fps(frames_folder))


def _dark(frame: Path) -> list[str]:
    """A note on a 16-bit frame that uses few of the bits, as cameras with 10 or 12 bits write them."""
    with open_image(frame) as image:
        most = int(decode(image, frame).max()) if image.mode.startswith("I") else DARK
    if most >= DARK:
        return []
    return [f"{frame} has no values above {most} of 65535, so its frames are dark; scale them if they should not be"]


def check_sizes(paths: list[Path]) -> None:
    """Raise InputError for an image whose upright size differs from the first one's. Decodes no pixels."""
    size = None
    for path in paths:
        with open_image(path) as image:
            shown = shown_size(image)
            turned = " as its EXIF orientation turns it" if shown != image.size else ""
        size = size or shown
        if shown != size:
            raise InputError(
                f"{path} is {shown[0]} x {shown[1]}{turned}; expected {size[0]} x {size[1]} like {paths[0]}"
            )


def prepared_fps(folder: Path) -> float | None:
    """Frames per second of a folder made by `timecycle.data.extract`; None for others."""
    try:
        content = read_json(folder / PREPARED, "what frames were prepared with")
    except InputError:
        return None
    match content:
        case {"rules": {"fps": int(fps) | float(fps)}} if 0 < fps <= FASTEST:
            return float(fps)
    return None
