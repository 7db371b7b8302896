"""The page of a results folder, report.html: which frames it shows, their pictures and scores."""

from pathlib import Path
from typing import Any

import numpy as np

from timecycle.data.images import read_rgb
from timecycle.data.masks import read_mask
from timecycle.data.sequences import Sequence
from timecycle.errors import printable
from timecycle.evaluation.davis.results import FEATURES, ResultsFolder
from timecycle.evaluation.davis.tables import GLOBAL_COLUMNS, ObjectScores, Scores
from timecycle.manifest import OVERLAYS, PAGE, PICTURES
from timecycle.viewing.report import Pair, Part, link, page, picture

FIRST = "00000-given.jpg"
"""Name of the picture of a sequence's first frame; the others are `<index>-truth.jpg` and `<index>-result.jpg`."""


def check_free(sequences: list[Sequence], folder: ResultsFolder) -> None:
    """Raise InputError if a page of these sequences would replace a file that this program did not write."""
    folder.report.check_free([PAGE, *(f"{PICTURES}/{sequence.name}/{FIRST}" for sequence in sequences)])


def write_report(
    sequences: list[Sequence], scores: Scores | None, folder: ResultsFolder, notes: tuple[str, ...] = ()
) -> Path:
    """Write report.html, and its pictures below report/, for sequences that are finished in the folder.

    scores: of those with annotations of every frame, if there are any; notes: sentences to show beside theirs.
    Returns the page's path. Raises InputError if a file cannot be read or written, or is not this program's.
    """
    pictures: dict[str, bytes] = {}
    means = scores.by_sequence if scores else {}
    parts = [_part(each, index, scores, means, folder.path, pictures) for index, each in enumerate(sequences)]
    anchors = {sequence.name: part.anchor for sequence, part in zip(sequences, parts, strict=True)}
    rows = [(printable(name), anchors.get(name), list(row.values())) for name, row in means.items()]
    if scores:
        rows.append(("all objects", None, list(scores.global_.values())))
    said = dict.fromkeys([*notes, *(n for s in sequences for n in s.notes), *(scores.notes if scores else ())])
    content = page(
        printable(Path(folder.content["options"].get("data", folder.path)).name),
        _facts(sequences, folder.content),
        list(GLOBAL_COLUMNS),
        rows,
        [printable(note) for note in said],
        parts,
    )
    folder.report.replace({PAGE: content, **pictures})
    return folder.path / PAGE


def _facts(sequences: list[Sequence], content: dict[str, Any]) -> list[tuple[str, str]]:
    """What is stated above the table."""
    options, frames = content["options"], sum(len(sequence.frames) for sequence in sequences)
    seconds = content.get("seconds", {}).get("total")
    features = str(options.get(FEATURES) or "not named").partition(" ")[0]
    side = options.get("side") if options.get("resize") != "native" else 0
    facts = [
        ("protocol", str(options.get("name", "not named"))),
        ("features", printable(features).replace("+", " + ")),
        ("frames", f"{frames} in {len(sequences)} sequence{'s' if len(sequences) > 1 else ''}"),
        ("size", f"{side} pixels, {options.get('resize')}" if side else "as the frames are"),
    ]
    return facts if seconds is None else [*facts, ("time", f"{seconds:.0f} s for the masks")]


def _part(
    sequence: Sequence,
    index: int,
    scores: Scores | None,
    means: dict[str, dict[str, float]],
    folder: Path,
    pictures: dict[str, bytes],
) -> Part:
    """A sequence's part of the page; its pictures are added to `pictures` by path below the folder."""
    everything = scores.sequences.get(sequence.name, ()) if scores else ()
    objects = {id_: one for id_, one in enumerate(everything, start=1) if not one.absent}

    def painted(frame: int, mask: np.ndarray, name: str) -> str:
        place = (PICTURES, sequence.name, name)
        pictures["/".join(place)] = picture(read_rgb(sequence.frames[frame]), mask)
        return link(*place)

    def truth(frame: int) -> np.ndarray:
        return read_mask(sequence.annotations[frame], sequence.masks)

    pairs = []
    for title, frame, words in _shown(sequence, objects):
        result = read_mask(folder / sequence.name / f"{sequence.frames[frame].stem}.png")
        true = painted(frame, truth(frame), f"{frame:05d}-truth.jpg") if sequence.scored else None
        stem = printable(sequence.frames[frame].stem)
        pairs.append(Pair(title, stem, words, true, painted(frame, result, f"{frame:05d}-result.jpg")))
    video = (OVERLAYS, f"{sequence.name}.mp4")
    return Part(
        printable(sequence.name),
        f"sequence-{index + 1}",
        means[sequence.name]["J&F-Mean"] if scores and sequence.scored else None,
        printable(sequence.frames[0].stem),
        len(sequence.frames),
        painted(0, truth(0), FIRST),
        link(*video) if folder.joinpath(*video).is_file() else None,
        pairs,
    )


def _by_frame(objects: dict[int, ObjectScores]) -> np.ndarray:
    """J&F of the objects, by id, in the scored frames: float64 [objects, frames]."""
    return np.array([(one.jaccard + one.boundary) / 2 for one in objects.values()])


def _shown(sequence: Sequence, objects: dict[int, ObjectScores]) -> list[tuple[str, int, str]]:
    """Title, index and scores of the frames shown beside the first: a middle one, and the worst or else the last."""
    last = len(sequence.frames) - 1
    middle = max(1, last // 2)
    found = _by_frame(objects)
    if not found.size:
        return [("middle", middle, ""), ("last", last, "")][: min(last, 2)]
    means = found.mean(0)
    worst = int(means.argmin()) + 1  # frame 0 is not scored

    def words(frame: int) -> str:
        text = f"J&F {means[frame - 1]:.3f}"
        id_, one = list(objects.items())[int(found[:, frame - 1].argmin())]
        j, f = one.jaccard[frame - 1], one.boundary[frame - 1]
        return text if len(objects) == 1 else f"{text}; worst object: {id_}, {(j + f) / 2:.3f} (J {j:.3f}, F {f:.3f})"

    if worst == middle:
        return [("middle and worst", worst, words(worst))]
    return [("middle", middle, words(middle)), ("worst", worst, words(worst))]
