"""Sequences of a folder in DAVIS layout. Does not import torch."""

import os
from dataclasses import replace
from pathlib import Path

from timecycle.data.masks import AS_STORED, MaskReading
from timecycle.data.sequences import Names, Sequence, read_sequences
from timecycle.errors import InputError
from timecycle.files import component, fields, read_lines, unquoted

SINGLE_OBJECT_YEAR = "2016"  # its annotations do not distinguish objects


def read_davis(
    root: Path,
    image_set: str = "val",
    year: str = "2017",
    names: Names = None,
    masks: MaskReading = AS_STORED,
) -> list[Sequence]:
    """The sequences of a folder in DAVIS layout, in the order of its list.

    Args:
        root: a folder with ImageSets/<year>/<image_set>.txt, JPEGImages/480p/<name>/*.jpg and
            Annotations/480p/<name>/*.png. A sequence needs only its first annotation; without the others it is not
            scored.
        image_set: name of the list.
        year: year of the list; in 2016 all objects are object 1.
        names: only these sequences; or a number: so many, evenly spaced in the list.
        masks: how annotations are read.

    Raises InputError naming the file for anything missing, damaged or inconsistent.
    """
    folders = {
        name: (root / "JPEGImages" / "480p" / name, annotations_folder(root, name))
        for name in sequence_names(root, image_set, year)
    }
    return read_sequences(folders, names, of_year(masks, year), f"the set {image_set}")


def of_year(masks: MaskReading, year: str) -> MaskReading:
    """How masks of a year's set are read: in 2016 any object is object 1."""
    return replace(masks, single=True) if year == SINGLE_OBJECT_YEAR else masks


def sequence_names(root: Path, image_set: str = "val", year: str = "2017") -> list[str]:
    """The names listed in root/ImageSets/<year>/<image_set>.txt; for 2016 also in root/ImageSets/480p.

    A line is a name, or, in DAVIS-2016, the paths of a frame and its annotation.
    Raises InputError if there is no such list, or a name, the set or the year is not a single path component.
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
        raise InputError(f"{listing} does not exist; expected one sequence name per line (existing sets: {there})")
    lines = [unquoted(line.strip()) for line in read_lines(listing, "one sequence name per line") if line.strip()]
    if not lines:
        raise InputError(f"{listing} is empty; expected one sequence name per line")
    return list(dict.fromkeys(component(_name(line), listing) for line in lines))


def _name(line: str) -> str:
    """The sequence's name in a line that holds it, the path of its folder, or the path of a frame."""
    if "/" not in line:
        return line
    path = Path(fields(line)[0])
    if ".." in path.parts:
        return str(path)  # `component` refuses it
    return path.parent.name if path.suffix else path.name


def annotations_folder(root: Path, name: str) -> Path:
    """The folder of a sequence's annotations."""
    return root / "Annotations" / "480p" / name
