"""Pictures of where the worst labels of an evaluation come from, for its page."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from timecycle.data.images import jpeg_bytes
from timecycle.data.sequences import Sequence
from timecycle.evaluation.davis.failures import chosen_failures, wrong_pixel
from timecycle.evaluation.davis.inspection import inspections, masks_in, true_mask
from timecycle.evaluation.davis.report_frames import Inspected, WorstFrame, kept_inspections
from timecycle.evaluation.davis.run import EvaluationRun
from timecycle.evaluation.davis.run_features import features_of, protocol_of
from timecycle.progress import Progress
from timecycle.propagation.frames import FrameEncoder
from timecycle.propagation.protocols import Protocol

QUALITY = 65
"""Of JPEG files."""


def explanations(
    run: EvaluationRun,
    sequences: list[Sequence],
    features: FrameEncoder,
    protocol: Protocol,
    *,
    count: int | None = None,
    ranks: int = 1,
    resumed: Collection[str] = (),
    progress: bool = True,
) -> Inspected:
    """Pictures of the worst frames of an evaluation, as its page takes them: see `failure_pictures`.

    Args:
        run: the evaluation; without scores there are no pictures.
        sequences: of the evaluation.
        features: the feature extractor.
        protocol: how labels were propagated.
        count: number of frames; by default few that cost little, see `chosen_failures`.
        ranks: number of processes that shared the evaluation, and wait for the page now.
        resumed: names of the sequences whose masks are of an earlier run; its pictures of them are used.
        progress: whether to show progress.
    """
    if not run.scores or count == 0:
        return {}
    chosen = chosen_failures(run.scores, sum(len(sequence.frames) for sequence in sequences) // ranks, count)
    stored = kept_inspections(run.folder) if resumed else {}
    places = [(one.sequence, one.index) for one in chosen]
    kept = {place: stored[place] for place in places if place in stored and place[0] in resumed}
    missing = [one for one, place in zip(chosen, places, strict=True) if place not in kept]
    return kept | failure_pictures(missing, sequences, features, protocol, run.places, progress=progress)


def explained_again(run: EvaluationRun, sequences: list[Sequence], count: int) -> Inspected:
    """`explanations` of a finished run, with its features loaded again. Raises InputError as `features_of`."""
    if not sequences or not count:
        return {}
    names = [sequence.name for sequence in sequences]
    with features_of(run, names[0]) as features:
        return explanations(run, sequences, features, protocol_of(run), count=count, resumed=names)


def failure_pictures(
    failures: Iterable[WorstFrame],
    sequences: Iterable[Sequence],
    features: FrameEncoder,
    protocol: Protocol,
    places: Mapping[str, Path],
    *,
    progress: bool = True,
) -> Inspected:
    """Pictures of failures of an evaluation, JPEG, by sequence and index of the frame.

    Each is of a pixel amid the largest wrong region of the object. A sequence is propagated once, up to the last of its
    failures; a frame has one picture, of the first failure in it.

    Args:
        failures: of the evaluation; those without a wrong pixel get no picture.
        sequences: those of the failures, among others.
        features: the feature extractor.
        protocol: how labels were propagated.
        places: by sequence, the folder that holds the folder of its masks.
        progress: whether to show progress.

    Raises InputError if a file cannot be read.
    """
    chosen: dict[str, dict[int, int]] = {}
    for failure in failures:
        chosen.setdefault(failure.sequence, {}).setdefault(failure.index, failure.object_id)
    found: Inspected = {}
    total = sum(max(frames) + 1 for frames in chosen.values())
    with Progress(total, "frame", "inspecting failures", shown=progress, delay=10.0) as bar:
        for sequence in sequences:
            mask_of = masks_in(places[sequence.name], sequence)
            wanted: dict[int, tuple[int, int]] = {}
            for index, object_id in chosen.get(sequence.name, {}).items():
                truth = true_mask(sequence, index)
                at = None if truth is None else wrong_pixel(truth, mask_of(index), object_id)
                wanted |= {} if at is None else {index: at}
            if wanted:
                for one in inspections(sequence, wanted, features, protocol, mask_of, step=bar.update):
                    found[sequence.name, one.weights.frame] = jpeg_bytes(one.picture, QUALITY)
    return found
