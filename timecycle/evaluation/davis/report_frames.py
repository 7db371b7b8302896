"""The worst frames of an evaluation, and pictures of its frames for the page."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from timecycle.data.images import read_rgb
from timecycle.data.masks import read_mask
from timecycle.data.sequences import Sequence
from timecycle.errors import InputError
from timecycle.evaluation.davis.run import EvaluationRun
from timecycle.evaluation.davis.tables import Scores
from timecycle.files import inside
from timecycle.manifest import PICTURES, Report
from timecycle.viewing.pages import data_url, link
from timecycle.viewing.stills import error_map, still

MOST = 12
"""Worst frames on a page."""
OF_ONE_OBJECT = 2
"""Most of them of one object."""
APART = 10
"""Least number of frames between two of one object."""
FIRST = "00000-given.jpg"
"""Name of the picture of a sequence's first frame; the others are `<index>-<kind>.jpg`."""

Inspected = dict[tuple[str, int], bytes]
"""Pictures by `timecycle inspect`, JPEG, by sequence and index of the frame."""


@dataclass(frozen=True)
class WorstFrame:
    """An object in a frame with low scores."""

    sequence: str
    object_id: int
    index: int
    """Of the frame in its sequence, from 0."""
    jaccard: float
    boundary: float


def worst_frames(scores: Scores) -> list[WorstFrame]:
    """The `MOST` frames and objects with the lowest mean of J and F, lowest first; of an object few, far apart."""
    places = {name: {file: index for index, file in enumerate(files, 1)} for name, files in scores.files.items()}
    found: list[WorstFrame] = []
    for frame in scores.worst(None):
        index = places[frame.sequence][frame.file]  # frame 0 is not scored
        key = (frame.sequence, frame.object_id)
        same = [other.index for other in found if (other.sequence, other.object_id) == key]
        if len(same) < OF_ONE_OBJECT and all(abs(other - index) >= APART for other in same):
            found.append(WorstFrame(frame.sequence, frame.object_id, index, frame.jaccard, frame.boundary))
        if len(found) == MOST:
            break
    return found


def inspection_name(index: int) -> str:
    """Name of a frame's picture by `timecycle inspect`, below report/<sequence>/."""
    return f"{index:05d}-inspect.jpg"


def kept_inspections(folder: Path) -> Inspected:
    """Pictures by `timecycle inspect` that an earlier page links to, by sequence and index of the frame."""
    notes, found = Report(folder), {}
    for path in notes.hashes:
        parts = path.split("/")
        index = parts[-1].partition("-")[0]
        if index.isdecimal() and parts[-1] == inspection_name(int(index)) and notes.whole([path]):
            found[parts[1], int(index)] = inside(folder, *parts).read_bytes()
    return found


@dataclass
class Pictures:
    """Makes a page's pictures, as files beside it or embedded in it."""

    run: EvaluationRun
    embed: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    """By path below the folder; also embedded ones, so that a later page in the folder finds those of `inspect`."""

    def add(self, sequence: str, name: str, data: bytes) -> str:
        """The URL of a picture."""
        place = (PICTURES, sequence, name)
        self.files["/".join(place)] = data
        return data_url(data, name) if self.embed else link(*place)

    def given(self, sequence: Sequence) -> tuple[str, tuple[int, int]]:
        """The first frame with its annotation, which the masks begin with; also the frame's width and height."""
        rgb = read_rgb(sequence.frames[0])
        return self.add(sequence.name, FIRST, still(rgb, _truth(sequence, 0))), rgb.shape[1::-1]

    def result(self, sequence: Sequence, index: int) -> str:
        """A frame with the mask that was found."""
        rgb = read_rgb(sequence.frames[index])
        found = result_mask(self.run, sequence, index, rgb)
        return self.add(sequence.name, f"{index:05d}-result.jpg", still(rgb, found))

    def compared(self, sequence: Sequence, worst: WorstFrame) -> dict[str, str]:
        """URLs by kind: the frame, the annotation on it, the result on it, and the object's errors."""
        index = worst.index
        rgb, truth = read_rgb(sequence.frames[index]), _truth(sequence, index)
        found = result_mask(self.run, sequence, index, rgb)
        made = {
            "frame": (f"{index:05d}-frame.jpg", still(rgb)),
            "truth": (f"{index:05d}-truth.jpg", still(rgb, truth)),
            "result": (f"{index:05d}-result.jpg", still(rgb, found)),
            "errors": (f"{index:05d}-errors-{worst.object_id}.jpg", error_map(rgb, truth, found, worst.object_id)),
        }
        return {kind: self.add(sequence.name, *named) for kind, named in made.items()}


def result_mask(run: EvaluationRun, sequence: Sequence, index: int, rgb: np.ndarray) -> np.ndarray:
    """A run's mask of a frame, uint8 [H, W] ids. Raises InputError unless it is of the frame's size.

    rgb: the frame, uint8 RGB [H, W, 3].
    """
    path = run.mask(sequence.name, sequence.frames[index].stem)
    mask = read_mask(path)
    if mask.shape != rgb.shape[:2]:
        raise InputError(
            f"{path} is {mask.shape[1]} x {mask.shape[0]}; expected {rgb.shape[1]} x {rgb.shape[0]} like "
            f"{sequence.frames[index]}"
        )
    return mask


def _truth(sequence: Sequence, index: int) -> np.ndarray:
    return read_mask(sequence.annotations[index], sequence.masks)
