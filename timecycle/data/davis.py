"""Video sequences in DAVIS-2017 layout, or listed as the original takes them, checked before any work begins."""

import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from timecycle.data.images import decode, open_image, shown_size
from timecycle.data.masks import AS_STORED, MaskReading, check_annotation, read_mask
from timecycle.errors import InputError, said
from timecycle.files import PREPARED, component, fields, natural_key, read_json, read_lines, unquoted

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
FASTEST = 1000.0  # frames a second that a folder may say its frames have
MASK_VALUES = 8  # that cover most of a mask's pixels, and of a gray image's do not
DARK = 1 << 13  # of 16 bits
LONGEST_LINE = 1500  # characters, of two paths
SINGLE_OBJECT_YEAR = "2016"  # whose annotations tell objects from the background, and no object from another


@dataclass(frozen=True)
class Sequence:
    """One video: its frames in order, and the annotations of all of them or of the first alone."""

    name: str
    frames: tuple[Path, ...]
    annotations: tuple[Path, ...]
    masks: MaskReading = AS_STORED
    """How the annotations are read."""
    notes: tuple[str, ...] = ()
    """What its user should know of it, a sentence each."""
    fps: float | None = None
    """Frames a second, where the folder of frames says so."""

    @property
    def scored(self) -> bool:
        """Whether every frame is annotated, so that masks can be graded."""
        return len(self.annotations) == len(self.frames)


def read_davis(
    root: Path,
    image_set: str = "val",
    year: str = "2017",
    names: list[str] | None = None,
    masks: MaskReading = AS_STORED,
) -> list[Sequence]:
    """The sequences of a folder in DAVIS layout, in the order of its list.

    root holds ImageSets/<year>/<image_set>.txt, JPEGImages/480p/<name>/*.jpg and Annotations/480p/<name>/*.png.
    year: of 2016, all objects are one. names: only these. masks: how annotations are read.
    Raises InputError naming the file for anything missing, damaged or not fitting together.
    """
    listed = sequence_names(root, image_set, year)
    for name in names or []:
        if name not in listed:
            raise InputError(
                f"--sequences {said(name)} is not in the set {image_set}; expected some of {', '.join(listed)}"
            )
    masks = of_year(masks, year)
    return [
        _read_sequence(name, root / "JPEGImages" / "480p" / name, annotations_folder(root, name), masks)
        for name in listed
        if not names or name in names
    ]


def of_year(masks: MaskReading, year: str) -> MaskReading:
    """How masks of a year's set are read: of 2016 any object is object 1."""
    return replace(masks, single=True) if year == SINGLE_OBJECT_YEAR else masks


def sequence_names(root: Path, image_set: str = "val", year: str = "2017") -> list[str]:
    """The names listed in root/ImageSets/<year>/<image_set>.txt; for 2016 also in root/ImageSets/480p.

    A line is a name, or, as DAVIS-2016 has it, the paths of a frame and of its annotation.
    Raises InputError if there is no such list, or a name in it, the set's or the year's is none of a single folder.
    """
    if not os.path.isdir(root):
        raise InputError(f"{root} is not a folder; expected one in DAVIS layout")
    component(image_set, "--set")
    component(year, "--year")
    listing = root / "ImageSets" / year / f"{image_set}.txt"
    older = root / "ImageSets" / "480p" / listing.name
    if year == SINGLE_OBJECT_YEAR and not os.path.isfile(listing) and os.path.isfile(older):
        listing = older
    if not os.path.isfile(listing):
        there = ", ".join(sorted(path.stem for path in listing.parent.glob("*.txt"))) or "none"
        raise InputError(f"{listing} does not exist; expected one sequence name a line (sets that are there: {there})")
    lines = [unquoted(line.strip()) for line in read_lines(listing, "one sequence name a line") if line.strip()]
    if not lines:
        raise InputError(f"{listing} is empty; expected one sequence name a line")
    return list(dict.fromkeys(component(_name(line), listing) for line in lines))


def _name(line: str) -> str:
    """The sequence's name in a line that is it, or holds the path of its folder, or of a frame in it."""
    if "/" not in line:
        return line
    path = Path(fields(line)[0])
    if ".." in path.parts:
        return str(path)  # which is no name
    return path.parent.name if path.suffix else path.name


def annotations_folder(root: Path, name: str) -> Path:
    """Where the annotations of a sequence are."""
    return root / "Annotations" / "480p" / name


def annotation_files(folder: Path) -> list[Path]:
    """The annotations of a sequence in order. Raises InputError if there are none."""
    return files_in(folder, (".png",), "annotations")


def read_filelist(path: Path, names: list[str] | None = None, masks: MaskReading = AS_STORED) -> list[Sequence]:
    """The sequences of a list with lines `frames-folder annotations-folder`, as the original program takes it.

    Folders with blanks in their paths stand in quotes, or a tab between the two. Relative folders are looked for from
    the working directory, then from the list's own folder. A sequence is named after its frames' folder; those of one
    name after as much of the path as tells them apart. Raises InputError naming the list and line, or the file, for
    anything that does not fit.
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
    found = _distinct_names([frames for frames, _ in folders])
    sequences = {component(name, path): pair for name, pair in zip(found, folders, strict=True)}
    for name in names or []:
        if name not in sequences:
            raise InputError(f"--sequences {said(name)} is not in {path}; expected some of {', '.join(sequences)}")
    return [
        _read_sequence(name, frames, annotations, masks)
        for name, (frames, annotations) in sequences.items()
        if not names or name in names
    ]


def _distinct_names(folders: list[Path]) -> list[str]:
    """The last part of each path, or as many of its last parts, joined by "-", as no other path shares."""
    parts = [folder.absolute().parts[1:] for folder in folders]
    names = [""] * len(folders)
    for count in range(1, max(map(len, parts)) + 1):
        tails = ["-".join(part[-count:]) for part in parts]
        often = Counter([*tails, *(name for name in names if name)])
        names = [name or (tail if often[tail] == 1 else "") for name, tail in zip(names, tails, strict=True)]
    return [name or f"{i}-{folder.name}" for i, (name, folder) in enumerate(zip(names, folders, strict=True))]


def files_in(folder: Path, suffixes: tuple[str, ...], what: str) -> list[Path]:
    """Files of a kind, in the natural order of their names: frame8, frame9, frame10.

    Names with a leading dot are leftovers of file managers and killed runs, and left out. Raises InputError if the
    folder is missing, cannot be read or holds none.
    """
    if not os.path.isdir(folder):  # which takes names that are too long, where that of Path raises OSError
        raise InputError(f"{folder} does not exist; expected a folder of {what}")
    try:
        files = [p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}); expected a folder of {what}") from None
    if not files:
        raise InputError(f"{folder} holds no {what}; expected files ending in {' or '.join(suffixes)}")
    return sorted(files, key=lambda path: (natural_key(path.stem), path.suffix))


def frame_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The frames of a video in natural order, and a sentence for each mask that lies beside them and is passed over.

    Raises InputError if there are none, or two files have one name but for the suffix.
    """
    frames = files_in(folder, FRAME_SUFFIXES, "frames")
    others = [path for path in frames if path.suffix.lower() != ".png"]
    names, forms = {path.stem for path in others}, {_form(path) for path in others}
    # A number of its own among the others' is a frame, whatever it shows.
    beside = [path for path in frames if others and path not in others]
    odd = [path for path in beside if (path.stem in names or _form(path) not in forms) and _is_mask(path)]
    frames = [path for path in frames if path not in odd]
    stems: dict[str, Path] = {}
    for path in frames:
        if path.stem in stems:
            raise InputError(f"{path} and {stems[path.stem].name} have one name; expected one frame of each name")
        stems[path.stem] = path
    return frames, [f"{path} is a mask beside frames, and is passed over" for path in odd]


def _form(path: Path) -> str:
    """A file's name but for the numbers in it."""
    return re.sub(r"\d+", "0", path.stem)


def _is_mask(path: Path) -> bool:
    """Whether a picture looks like a mask rather than a frame: most of it has a few values."""
    try:
        with open_image(path) as image:
            stored = decode(image, path) if image.mode == "P" else read_mask(path)
    except InputError:
        return False
    counts = np.bincount(stored.ravel())
    return bool(np.sort(counts)[-MASK_VALUES:].sum() > 0.9 * counts.sum())


def _read_sequence(name: str, frames_folder: Path, masks_folder: Path, masks: MaskReading) -> Sequence:
    """List and check one sequence: names and counts pair up, sizes agree, the first annotation can be used."""
    frames, notes = frame_files(frames_folder)
    annotations = annotation_files(masks_folder)
    if annotations[0].stem != frames[0].stem:
        raise InputError(
            f"{masks_folder / (frames[0].stem + '.png')} does not exist; expected the first frame's annotation"
        )
    if len(annotations) not in (1, len(frames)):
        raise InputError(
            f"{masks_folder} holds {len(annotations)} annotations for {len(frames)} frames in {frames_folder}; "
            "expected one for every frame, or for the first alone"
        )
    for frame, annotation in zip(frames, annotations, strict=False):
        if frame.stem != annotation.stem:
            raise InputError(f"{frame} has no annotation {masks_folder / (frame.stem + '.png')}; expected equal names")
    check_sizes([*frames, *annotations])
    notes += _dark(frames[0])
    masks = masks.of_sequence(annotations[0])
    notes += check_annotation(annotations[0], masks)
    return Sequence(name, tuple(frames), tuple(annotations), masks, tuple(notes), _prepared_fps(frames_folder))


def _dark(frame: Path) -> list[str]:
    """A sentence on a frame of 16 bits of which hardly any are used, as cameras of 10 and 12 bits write them."""
    with open_image(frame) as image:
        most = int(decode(image, frame).max()) if image.mode.startswith("I") else DARK
    if most >= DARK:
        return []
    return [f"{frame} holds no values above {most} of 65535, so that its frames are dark; scale them if that is not so"]


def check_sizes(paths: list[Path]) -> None:
    """Raise InputError for a picture that is not shown at the first one's size. Decodes none."""
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


def _prepared_fps(folder: Path) -> float | None:
    """Frames a second of a folder that `timecycle.data.extract` made; None for another."""
    try:
        content = read_json(folder / PREPARED, "what frames were prepared with")
    except InputError:
        return None
    match content:
        case {"rules": {"fps": int(fps) | float(fps)}} if 0 < fps <= FASTEST:
            return float(fps)
    return None
