"""A finished evaluation, read back from its results folder. Does not import torch."""

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from timecycle.data.masks import MaskReading
from timecycle.data.sequences import Sequence, prepared_fps, read_sequences
from timecycle.errors import InputError, listing, said
from timecycle.evaluation.davis.layout import annotations_folder
from timecycle.evaluation.davis.results import FRAME_STRIDE, RESULTS, files_mark, read_results
from timecycle.evaluation.davis.scores import score_written
from timecycle.evaluation.davis.tables import Scores
from timecycle.files import inside
from timecycle.manifest import OVERLAYS
from timecycle.viewing.video_writer import FRAMES_PER_SECOND

EXPECTED = "the results folder of timecycle evaluate or evaluate_davis"


@dataclass(frozen=True, eq=False)
class EvaluationRun:
    """An evaluation's options, scores and files; `read_run` makes it."""

    folder: Path
    """The results folder."""
    content: dict[str, Any]
    """What results.json holds, with current names, see `timecycle.evaluation.davis.results`."""
    scores: Scores | None
    """None without annotations of every frame, or if it was stopped before it was scored."""
    places: dict[str, Path]
    """By sequence, the folder that holds the folder of its masks: `folder`, or of several processes the one of one."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def options(self) -> dict[str, Any]:
        """What the masks depend on: the protocol's fields, features, data and how masks are read."""
        return self.content["options"]

    def sequence(self, name: str) -> Sequence:
        """A sequence's frames and annotations.

        Raises InputError if it is not of this run, or if its files have moved or were changed since.
        """
        entry = self.content["sequences"].get(name)
        if entry is None:
            raise InputError(
                f"{self.folder} has no sequence {said(name)}; expected one of {listing(self.content['sequences'])}"
            )
        try:
            data = entry["data"] if "data" in entry else self._in_davis(name)
            folders, fps = (Path(data["frames"]), Path(data["annotations"])), data["fps"]
            stride = max(1, int(self.options[FRAME_STRIDE]))
            stored = dict(self.options["masks"])
            masks = MaskReading(**stored | {"remap": tuple((int(a), int(b)) for a, b in stored["remap"])})
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"{self.folder / RESULTS} does not say where the frames of {said(name)} are; expected a run of this "
                "version, with --overwrite"
            ) from None
        found = replace(read_sequences({name: folders}, None, masks, folders[0])[0].every(stride), fps=fps)
        if files_mark(found) != entry.get("files"):
            raise InputError(f"{folders[0]} was changed since {self.folder} was made; expected the same frames")
        return found

    def _in_davis(self, name: str) -> dict[str, Any]:
        """Where a sequence's files are if the data are in DAVIS layout: versions before 0.2 recorded no more."""
        root = Path(self.options["data"])
        frames = root / "JPEGImages" / "480p" / name
        return {"frames": frames, "annotations": annotations_folder(root, name), "fps": prepared_fps(frames)}

    def sequences(self) -> list[Sequence]:
        """All sequences, in their order. Raises InputError as `sequence`."""
        return [self.sequence(name) for name in self.content["sequences"]]

    def mask(self, sequence: str, frame: str) -> Path:
        """The file of a mask, by the frame's name without suffix."""
        return inside(self.places[sequence], sequence, f"{frame}.png")

    def fps(self, sequence: str, otherwise: float | None = None) -> float:
        """Frames per second of a sequence's overlay video, as recorded: a later run may have been given others.

        otherwise: those of a version before 0.2, which recorded none.
        """
        match self.content["sequences"][sequence].get("data", {"fps": otherwise}):
            case {"fps": int(fps) | float(fps)} if fps > 0:
                return fps
        return FRAMES_PER_SECOND

    def video(self, sequence: str) -> Path | None:
        """The overlay video of a sequence, if there is one."""
        path = inside(self.places[sequence], OVERLAYS, f"{sequence}.mp4")
        return path if path.is_file() else None


def read_run(folder: Path | str) -> EvaluationRun:
    """Read a results folder, or the folders rank0, rank1, ... that several processes wrote in one.

    Scores of a version that did not count pixels are computed again, unless the data have moved or a mask is damaged.
    Raises InputError if the folder holds no results, or they are damaged.
    """
    folder = Path(folder)
    parts = [folder]
    if not (folder / RESULTS).is_file():
        parts = sorted(
            (path.parent for path in folder.glob(f"rank[0-9]*/{RESULTS}")), key=lambda path: (len(path.name), path)
        )
    if not parts:
        raise InputError(f"{folder} holds no {RESULTS}; expected {EXPECTED}")
    contents = [read_results(part, EXPECTED) for part in parts]
    places = {name: part for part, content in zip(parts, contents, strict=True) for name in content["sequences"]}
    content = contents[0] | {"sequences": {name: e for each in contents for name, e in each["sequences"].items()}}
    if any(each["options"] != content["options"] for each in contents):
        raise InputError(
            f"{folder} holds results of several options, in {parts[0].name} and others; expected {EXPECTED}"
        )
    found = [_scores(part, each) for part, each in zip(parts, contents, strict=True) if each.get("scores")]
    run = EvaluationRun(folder, content, _joined(found, folder), places)
    if run.scores and any(
        one.pixels is None for objects in run.scores.sequences.values() for one in objects if not one.absent
    ):
        with suppress(InputError):
            return replace(run, scores=rescored(run))
    return run


def rescored(run: EvaluationRun) -> Scores | None:
    """Score a run's masks again. Raises InputError if its data have moved."""
    found = [score_written([sequence], run.places[sequence.name]) for sequence in run.sequences()]
    return _joined([scores for scores in found if scores], run.folder)


def _scores(folder: Path, content: dict[str, Any]) -> Scores:
    try:
        scores = Scores.from_json(content["scores"])
    except InputError as error:
        raise InputError(f"{folder / RESULTS} is damaged: {error}") from None
    if lost := [name for name in scores.sequences if name not in content["sequences"]]:
        raise InputError(f"{folder / RESULTS} is damaged: {said(lost[0])} has scores and no masks; expected both")
    return scores


def _joined(parts: list[Scores], folder: Path) -> Scores | None:
    """The scores of several parts of a set, if there are any."""
    if not parts:
        return None
    return Scores(
        {name: objects for part in parts for name, objects in part.sequences.items()},
        {name: files for part in parts for name, files in part.files.items()},
        tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        folder,
    )
