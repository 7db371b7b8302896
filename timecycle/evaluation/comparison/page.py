"""The page of a comparison: which sequences it shows, and their pictures. Does not import torch."""

from pathlib import Path
from typing import Any

import numpy as np

from timecycle.data.images import read_rgb
from timecycle.data.masks import read_mask
from timecycle.data.sequences import Sequence
from timecycle.errors import InputError, printable, sentence
from timecycle.evaluation.comparison.compare import Comparison, class_limits, frame_name, p_value, shown_settings
from timecycle.evaluation.comparison.differences import PairedObject, PairedSequence, Versus
from timecycle.evaluation.comparison.paired import LEAST_CLUSTERS, Difference
from timecycle.evaluation.comparison.paper import LESS_IS_BETTER
from timecycle.evaluation.davis.causes import CAUSES
from timecycle.evaluation.davis.report_frames import result_mask
from timecycle.evaluation.davis.report_run import image_size, protocol_name
from timecycle.evaluation.davis.tables import GLOBAL_COLUMNS
from timecycle.viewing.pages import data_url, linked, render
from timecycle.viewing.stills import error_map, still

SEQUENCES = 6
"""Most sequences that are shown with videos and pictures."""
CURVES = 3
"""Most objects of a sequence with curves."""


def page(comparison: Comparison, folder: Path, single_file: bool = False) -> bytes:
    """The page as UTF-8. Pictures are in it; videos are linked, relative to the page's folder, or in it as well.

    Raises InputError if a video cannot be read.
    """
    notes = list(comparison.notes)
    shown = _shown(comparison)
    parts = [_Part(comparison, pairs, index, notes) for index, pairs in enumerate(shown, start=1)]
    names = [printable(name) for name in comparison.names]
    anchors = {pairs[0].sequence: _anchor(index) for index, pairs in enumerate(shown, start=1)}
    most = max((count for counts in comparison.causes for count in counts.values()), default=0) or 1
    return render(
        "compare.html.jinja",
        title=" and ".join(names) if len(names) == 2 else f"{names[0]} and {len(names) - 1} others",
        names=names,
        facts=_facts(comparison),
        columns=GLOBAL_COLUMNS,
        means=_means(comparison),
        settings=shown_settings(comparison),
        versus=[_against(versus, anchors) for versus in comparison.versus],
        scale={
            "measures": _scale([each for one in comparison.versus for each in one.measures.values()]),
            "classes": _scale([each.difference for one in comparison.versus for each in one.classes]),
            "rows": max((abs(each.difference) for one in comparison.versus for each in one.objects), default=0) or 1,
        },
        least=LEAST_CLUSTERS,
        causes=[
            (cause, [(counts[cause], counts[cause] / most) for counts in comparison.causes])
            for cause in (comparison.causes[0] if comparison.causes else ())
        ],
        rules=CAUSES,
        parts=[part.content(folder, single_file) for part in parts],
        notes=[printable(note) for note in dict.fromkeys(notes)],
    )


def _means(comparison: Comparison) -> list[list[tuple[float, bool]]]:
    """For each run the official columns, and whether none is better as it is shown."""
    values = [list(scores.global_.values()) for scores in comparison.scores]
    wanted = [(min if name in LESS_IS_BETTER else max) for name in GLOBAL_COLUMNS]
    best = [choose(round(row[column], 3) for row in values) for column, choose in enumerate(wanted)]
    return [[(value, round(value, 3) == best[column]) for column, value in enumerate(row)] for row in values]


def _against(versus: Versus, anchors: dict[str, str]) -> dict[str, Any]:
    """One run against the baseline."""
    measures = [
        (name, found, versus.signs[name], p_value(versus.signs[name].p)) for name, found in versus.measures.items()
    ]
    rows = []
    for sequence in versus.sequences:
        row = _row(sequence, printable(sequence.name)) | {"anchor": anchors.get(sequence.name)}
        several = len(sequence.objects) > 1
        rows.append(row | {"objects": [_row(one, f"object {one.object_id}") for one in sequence.objects if several]})
    classes = [(one, class_limits(one.attribute, one.kind)) for one in versus.classes]
    return {"measures": measures, "classes": classes, "rows": rows}


def _row(pair: PairedSequence | PairedObject, name: str) -> dict[str, Any]:
    """A row of the table of sequences and objects."""
    baseline, other = pair.means
    frame = printable(frame_name(pair.frame))
    found = {"name": name, "baseline": baseline, "other": other, "differences": pair.differences}
    return found | {"frame": frame, "there": pair.frame.difference}


def _anchor(number: int) -> str:
    return f"sequence-{number}"


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    """What is the same in all runs."""
    scores = comparison.scores[0]
    objects = sum(not one.absent for found in scores.sequences.values() for one in found)
    facts = [
        ("sequences", str(len(scores.sequences))),
        ("objects", str(objects)),
        ("scored frames", str(sum(map(len, scores.files.values())))),
    ]
    if comparison.runs:
        run = comparison.runs[0]
        if "protocol" not in comparison.settings:
            facts.insert(0, ("protocol", protocol_name(run)))
        if not {"side", "resize"} & comparison.settings.keys():
            facts.append(("size", image_size(run)))
    return facts


def _scale(differences: list[Difference]) -> float:
    """The largest absolute value that is drawn."""
    values = np.abs([value for each in differences for value in (each.mean, each.low, each.high)] or [0.0])
    return float(np.nanmax(values, initial=0.0)) or 1.0


def _shown(comparison: Comparison) -> list[list[PairedObject]]:
    """For the sequences in which any run differs most from the baseline, the pairs of each run for one object.

    It is the sequence's object with the largest difference.
    """
    most: dict[str, float] = {}
    for one in (one for versus in comparison.versus for one in versus.objects):
        most[one.sequence] = max(most.get(one.sequence, 0.0), abs(one.difference))
    chosen = sorted((name for name in most if most[name] > 0), key=lambda name: -most[name])[:SEQUENCES]
    return [_pairs(comparison.versus, name) for name in chosen]


def _pairs(versus: tuple[Versus, ...], sequence: str) -> list[PairedObject]:
    found = [{one.object_id: one for one in each.objects if one.sequence == sequence} for each in versus]
    ids = {id_ for objects in found for id_ in objects}
    worst = max(ids, key=lambda id_: max(abs(objects[id_].difference) for objects in found if id_ in objects))
    return [objects[worst] for objects in found if worst in objects]


class _Part:
    """One of the sequences that are shown."""

    def __init__(self, comparison: Comparison, pairs: list[PairedObject], number: int, notes: list[str]) -> None:
        self._comparison, self._number, self._notes = comparison, number, notes
        self._pairs = pairs
        self.sequence = pairs[0].sequence
        self._largest = max(pairs, key=lambda pair: abs(pair.frame.difference))
        self._index = self._largest.frame.position + 1
        """Of the shown frame, in the sequence and in the videos."""

    def content(self, folder: Path, single_file: bool) -> dict[str, Any]:
        """What the template shows."""
        scores = [each.by_sequence[self.sequence]["J&F-Mean"] for each in self._comparison.scores]
        videos = self._videos(folder, single_file)
        playing = self._playing(videos)
        return {
            "name": printable(self.sequence),
            "anchor": _anchor(self._number),
            "playing": playing,
            "scores": scores,
            "object": self._largest.object_id,
            "objects": len(self._comparison.scores[0].sequences[self.sequence]),
            "frame": self._frame_name(self._index - 1),
            "index": self._index,
            "scored": [
                [float(each.jaccard[self._index - 1]), float(each.boundary[self._index - 1])]
                for each in self._each_run(self._largest.object_id)
            ],
            "videos": videos,
            "fps": [run.fps(self.sequence) for run in self._comparison.runs],
            "charts": self._charts(playing),
            "pictures": self._pictures(),
        }

    def _each_run(self, id_: int) -> list[Any]:
        """One object's scores in each run."""
        return [scores.sequences[self.sequence][id_ - 1] for scores in self._comparison.scores]

    def _frame_name(self, index: int) -> str:
        files = self._comparison.scores[0].files.get(self.sequence)
        return printable(Path(files[index]).stem) if files else str(index + 1)

    def _videos(self, folder: Path, single_file: bool) -> list[str | None]:
        """The URL of each run's overlay video."""
        found = [run.video(self.sequence) for run in self._comparison.runs]
        return [linked(path, None if single_file else folder) if path else None for path in found]

    def _charts(self, playing: str | None) -> list[dict[str, Any]]:
        """J&F of each run over the frames, for the objects that differ most."""
        objects = [one for each in self._comparison.versus for one in each.objects if one.sequence == self.sequence]
        objects.sort(key=lambda one: -abs(one.difference))
        ids = list(dict.fromkeys([self._largest.object_id, *(one.object_id for one in objects)]))
        return [self._chart(id_, len(ids) > 1, playing) for id_ in ids[:CURVES]]

    def _chart(self, id_: int, several: bool, playing: str | None) -> dict[str, Any]:
        scores = self._each_run(id_)
        frames = len(scores[0].jaccard)
        series = [
            {"name": printable(name), "color": number, "values": (each.jaccard + each.boundary) / 2}
            for number, (name, each) in enumerate(zip(self._comparison.names, scores, strict=True), start=1)
        ]
        here = id_ == self._largest.object_id
        return {
            "x": list(range(1, frames + 1)),
            "names": [self._frame_name(index) for index in range(frames)],
            "x_label": f"object {id_}, frame" if several else "frame",
            "label": f"J&F of {printable(self.sequence)}, object {id_}",
            "panels": [{"label": "J&F", "min": 0, "max": 1, "series": series}],
            "marks": [{"x": self._index, "text": "shown below"}] if here else [],
        } | ({"video": playing} if playing else {})

    def _playing(self, videos: list[str | None]) -> str | None:
        """The id of the video that curves seek, which the others follow."""
        number = next((number for number, video in enumerate(videos, start=1) if video), None)
        return None if number is None else f"{_anchor(self._number)}-{number}"

    def _pictures(self) -> dict[str, Any] | None:
        """URLs of the truth, and of each run's result and errors; None, with a note, if the data have moved."""
        if not self._comparison.runs:
            return None
        try:
            sequence = self._comparison.runs[0].sequence(self.sequence)
            rgb, truth = self._read(sequence)
            masks = [result_mask(run, sequence, self._index, rgb) for run in self._comparison.runs]
            id_ = self._largest.object_id
            runs = [(still(rgb, mask), error_map(rgb, truth, mask, id_)) for mask in masks]
            return {
                "truth": data_url(still(rgb, truth), "truth.jpg"),
                "frame": data_url(still(rgb), "frame.jpg"),
                "runs": [[data_url(picture, "run.jpg") for picture in pictures] for pictures in runs],
            }
        except (InputError, OSError) as error:
            self._notes.append(f"Pictures of {self.sequence} are left out: {sentence(error)}.")
            return None

    def _read(self, sequence: Sequence) -> tuple[np.ndarray, np.ndarray]:
        """The shown frame and its annotation."""
        return read_rgb(sequence.frames[self._index]), read_mask(sequence.annotations[self._index], sequence.masks)
