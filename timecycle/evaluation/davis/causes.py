"""Why objects fail: stretches of low scores, each named by a rule. NumPy only; images are not read.

An object fails in a stretch: at least FAIL_FRAMES frames whose mean of J and F, or J if it is small, is below FAILS,
with at most GAP better ones in a row between them. The first rule of CAUSES, in their order, that a stretch satisfies
is its cause. From the frame on at which an object is lost for good, a stretch is looked at anew.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import PurePath
from typing import Any

import numpy as np

from timecycle.evaluation.davis.pixels import ObjectPixels
from timecycle.evaluation.davis.tables import ObjectScores, Scores

FAILS = 0.5
"""J&F, or J of a small object, whose F is near 1 within its tolerance, below which an object fails in a frame; the
recall of DAVIS has the same limit."""
FAIL_FRAMES = 3
"""Least failing frames of a stretch."""
GAP = 2
"""Most good frames in a row within a stretch."""
SEVERAL = 5
"""Least frames of an identity swap, of a lost object, and before it of a stretch of their own; most frames between an
object being hidden and the failure that it explains."""
SWAP_SHARE = 0.3
"""Least share of the result that is on one other object in an identity swap."""
COVERED = 0.5
"""Least share of the object that the result covers in a leak, and before an occlusion."""
SHRUNK = 0.5
"""An object is hidden where its annotation has less than this share of its largest area of HIDDEN_FRAMES frames."""
HIDDEN_FRAMES = 12
"""Frames back to which a hidden object's area is compared."""
LEAK_AREA = 1.5
"""Least area of the result in a leak, in areas of the object."""
SMALL = 0.003
"""Share of the frame below which an object is small; COCO's limit, 32 x 32 pixels of some 640 x 480, is 0.0033."""
FEW = 0.005
"""Share of the frame that is wrong, below which a few pixels decide the score of a small object."""
LOST = 0.1
"""Share of the object that the result covers, below which there is no overlap."""
SMOOTH = 5
"""Frames of which the median is taken where a fall of J is measured."""
FALL = 0.2
"""Least fall of J in an occlusion or a drift."""
JUMP_FRAMES = 3
"""A fall is a jump if this many frames have JUMP_SHARE of it."""
JUMP_SHARE = 0.5
"""See JUMP_FRAMES."""
TOP = 0.9
"""Share of the largest score before it, from which on a fall is counted."""
MAJORITY = 0.5
"""Share of a stretch's frames in which an identity swap or a leak must be seen."""

OTHER = "other"
"""The cause of a stretch that satisfies no other rule."""
CAUSES = {
    "identity swap": (
        f"At least {SWAP_SHARE:.0%} of the result, and half of what is wrong in it, is on one other object: in "
        f"{SEVERAL} frames or more, and in half of the frames in which the object itself is not hidden."
    ),
    "occlusion": (
        f"The annotation is empty, or has less than {SHRUNK:.0%} of its largest area in the last {HIDDEN_FRAMES} "
        f"frames, at most {SEVERAL} frames before or after the object begins to fail. J falls by {FALL:g} or more, and "
        f"the result covered {COVERED:.0%} of the object before."
    ),
    "small object": (
        f"The object has less than {SMALL:.1%} of the frame, and less than {FEW:.1%} of the frame is wrong (medians)."
    ),
    "leak": (
        f"In half of the frames the result has at least {LEAK_AREA:g} times the area of the object and covers at "
        f"least {COVERED:.0%} of it."
    ),
    "lost": (
        f"The result covers less than {LOST:.0%} of the object in {SEVERAL} frames or more: in all up to the last one "
        "of the video, or in half of a stretch in which J does not fall slowly."
    ),
    "drift": (
        f"J falls slowly, by at least {FALL:g} in all: no {JUMP_FRAMES} frames in a row have {JUMP_SHARE:.0%} of the "
        "fall."
    ),
    OTHER: "None of these: the score is low from the first frames on, or falls at once where a part is still covered.",
}
"""The rule of each cause, in the order in which they are tried."""
WHOLE = ("identity swap", "occlusion", "lost")
"""Causes of a whole stretch, also where it ends with a lost object."""


@dataclass(frozen=True)
class Cause:
    """Why an object fails in a stretch of frames."""

    sequence: str
    """Name of the sequence."""
    object_id: int
    """Id of the object, from 1."""
    name: str
    """One of CAUSES."""
    first: int
    """Index of the first frame among the scored ones, which are all but the sequence's first and last."""
    last: int
    """Index of the last frame."""
    file: str
    """Name of the first frame's annotation file; empty if the scores have no names."""
    words: str
    """A sentence with the numbers."""


def causes_of(scores: Scores) -> list[Cause]:
    """The causes of all failing stretches, by sequence, object and frame.

    Objects without `ObjectScores.pixels`, of scores of earlier versions, are left out.
    """
    found = []
    for sequence, objects in scores.sequences.items():
        files = scores.files.get(sequence, ())
        for id_, one in enumerate(objects, start=1):
            if one.absent or one.pixels is None or not len(one.jaccard):
                continue
            curves = _Curves(one, one.pixels, [PurePath(file).stem for file in files])
            for stretch, name, words in _named(curves):
                file = files[stretch.first] if files else ""
                found.append(Cause(sequence, id_, name, stretch.first, stretch.last, file, words))
    return found


def counts(causes: Iterable[Cause]) -> dict[str, int]:
    """How many objects have each cause, in the order of CAUSES; an object counts once for a cause."""
    having = {(cause.sequence, cause.object_id, cause.name) for cause in causes}
    return {name: sum(one[2] == name for one in having) for name in CAUSES}


def cause_at(causes: Iterable[Cause], sequence: str, object_id: int, index: int) -> Cause | None:
    """The cause of an object's failure in one scored frame, by index; None if it does not fail or none is named."""
    for cause in causes:
        if (cause.sequence, cause.object_id) == (sequence, object_id) and cause.first <= index <= cause.last:
            return cause
    return None


def counted(causes: Iterable[Cause]) -> str:
    """A line that counts the objects by cause of failure; empty if there is none."""
    found = ", ".join(f"{name} {count}" for name, count in counts(causes).items() if count)
    return f"objects by cause of failure: {found}" if found else ""


def scores_json(scores: Scores) -> dict[str, Any]:
    """`Scores.to_json`, and "causes": a list of the fields of each `Cause`."""
    return scores.to_json() | {"causes": [asdict(cause) for cause in causes_of(scores)]}


class _Curves:
    """What the rules look at: one object's values over the scored frames, each [N]."""

    def __init__(self, scores: ObjectScores, pixels: ObjectPixels, stems: list[str]) -> None:
        self.pixels, self._stems = pixels, stems
        self.score = (scores.jaccard + scores.boundary) / 2
        self.there = pixels.truth > 0
        """Whether the annotation has the object."""
        self.nothing = ~self.there & (pixels.result == 0)
        """Whether neither has it, which scores 1."""
        self.covered = np.where(self.nothing, 1, pixels.both / np.maximum(pixels.truth, 1))
        """Share of the object that the result covers; 1 where neither has it."""
        before = np.concatenate([np.full(HIDDEN_FRAMES, pixels.first), pixels.truth])
        largest = np.lib.stride_tricks.sliding_window_view(before, HIDDEN_FRAMES + 1).max(1)
        self.small = SMALL * pixels.frame
        """Pixels of a small object."""
        self.hidden = ~self.there | ((pixels.truth < SHRUNK * largest) & (largest >= self.small))
        self.largest = largest
        score = np.where(self.there & (largest < self.small), scores.jaccard, self.score)
        self.failing = (score < FAILS) & ~self.nothing
        padded = np.pad(scores.jaccard, SMOOTH // 2, mode="edge")
        self.smooth = np.median(np.lib.stride_tricks.sliding_window_view(padded, SMOOTH), axis=1)
        """J, each the median of SMOOTH frames."""

    def name(self, index: int) -> str:
        """A frame as the sentences name it."""
        return f"frame {self._stems[index] if self._stems else index + 1}"


@dataclass(frozen=True)
class _Stretch:
    """Frames in which an object fails."""

    first: int
    last: int
    lost_from: int | None = None
    """First frame of those up to the last one without overlap, if the stretch ends with them."""

    def of(self, values: np.ndarray) -> np.ndarray:
        """The part of [N] values."""
        return values[self.first : self.last + 1]


def _stretches(curves: _Curves) -> Iterator[_Stretch]:
    """The failing stretches of an object, in order."""
    run: list[int] = []
    good = 0
    for index, failing in enumerate([*curves.failing, False]):
        if failing:
            run.append(index)
            good = 0
            continue
        end = index == len(curves.failing)
        good += not end and not curves.nothing[index]
        if end or good > GAP:
            if len(run) >= FAIL_FRAMES:
                yield _Stretch(run[0], run[-1])
            run = []


def _named(curves: _Curves) -> Iterator[tuple[_Stretch, str, str]]:
    """The stretches with name and words of their causes; one that ends lost may be two."""
    lost_from = _lost_from(curves)
    for stretch in _stretches(curves):
        for part in _parts(curves, stretch, lost_from):
            yield part, *_cause(curves, part)


def _parts(curves: _Curves, stretch: _Stretch, lost_from: int | None) -> list[_Stretch]:
    """A stretch, or the two of one that ends lost: what was before, and from then on."""
    if lost_from is None or lost_from > stretch.last:
        return [stretch]
    if lost_from - stretch.first < SEVERAL:
        return [replace(stretch, lost_from=lost_from)]
    parts = [replace(stretch, last=lost_from - 1), _Stretch(lost_from, stretch.last, lost_from)]
    whole, before, after = (_cause(curves, part)[0] for part in (stretch, *parts))
    one = (whole in WHOLE and (whole, before) != ("lost", "leak")) or before == after
    return [stretch] if one else parts


def _lost_from(curves: _Curves) -> int | None:
    """The first frame from which on nothing of the object is covered, if these are enough."""
    seen = np.flatnonzero(curves.there)
    found = np.flatnonzero(curves.covered[seen] >= LOST)
    tail = seen[found[-1] + 1 :] if found.size else seen
    return int(tail[0]) if len(tail) >= SEVERAL else None


def _cause(curves: _Curves, stretch: _Stretch) -> tuple[str, str]:
    """Name and words of the first rule that a stretch satisfies."""
    found = ((name, rule(curves, stretch)) for name, rule in _RULES.items())
    return next((name, words) for name, words in found if words)


def _identity_swap(curves: _Curves, stretch: _Stretch) -> str | None:
    pixels = curves.pixels
    mostly = pixels.other >= MAJORITY * (pixels.result - pixels.both)
    swapped = (pixels.other >= SWAP_SHARE * pixels.result) & mostly & (pixels.other > 0)
    visible = stretch.of(curves.failing & ~curves.hidden)
    frames = np.flatnonzero(stretch.of(swapped) & visible)
    if len(frames) < max(SEVERAL, MAJORITY * visible.sum()):
        return None
    id_ = np.bincount(stretch.of(pixels.other_id)[frames]).argmax()
    shares = (stretch.of(part / np.maximum(pixels.result, 1))[frames] for part in (pixels.other, pixels.both))
    other, own = (np.median(share) for share in shares)
    begin = curves.name(stretch.first + int(frames[0]))
    return (
        f"From {begin} on, in {len(frames)} frames, {other:.0%} of the result is on object {id_}, {own:.0%} on its own."
    )


def _occlusion(curves: _Curves, stretch: _Stretch) -> str | None:
    begin = max(stretch.first - SEVERAL, 0)
    near = np.flatnonzero(curves.hidden[begin : stretch.first + SEVERAL + 1])
    if not near.size:
        return None
    truth = curves.pixels.truth
    at = begin + int(near[0])
    before = slice(max(at - SEVERAL, 0), at + 1)
    fall = curves.smooth[before].max() - curves.smooth[at : stretch.last + 1].min(initial=1)
    if fall < FALL or curves.covered[before].max() < COVERED:
        return None
    least = at + int(truth[at : max(stretch.first + SEVERAL, at) + 1].argmin())
    share = truth[least] / curves.largest[least] if curves.largest[least] else 0.0
    what = "has vanished" if truth[least] == 0 else f"has {share:.0%} of its area"
    back = "" if stretch.last < len(truth) - 1 else " and stays low to the end"
    return f"At {curves.name(least)} the object {what}; the score falls at {curves.name(stretch.first)}{back}."


def _small_object(curves: _Curves, stretch: _Stretch) -> str | None:
    pixels, there = curves.pixels, stretch.of(curves.there)
    if not there.any():
        return None
    area = np.median(stretch.of(pixels.truth)[there])
    wrong = np.median(stretch.of(pixels.truth + pixels.result - 2 * pixels.both)[there])
    if area >= curves.small or wrong >= FEW * pixels.frame:
        return None
    return f"The object has {area:.0f} pixels, {area / pixels.frame:.2%} of the frame, and {wrong:.0f} are wrong."


def _leak(curves: _Curves, stretch: _Stretch) -> str | None:
    pixels = curves.pixels
    leaking = (pixels.result >= LEAK_AREA * pixels.truth) & (curves.covered >= COVERED)
    visible = stretch.of(curves.failing & curves.there)
    frames = np.flatnonzero(stretch.of(leaking) & visible)
    if not frames.size or len(frames) < MAJORITY * visible.sum():
        return None
    times = stretch.of(pixels.result / np.maximum(pixels.truth, 1))[frames]
    share = np.median(stretch.of(curves.covered)[frames])
    return (
        f"The result has {np.median(times):.1f} times the object's area (at most {times.max():.1f}) and covers "
        f"{share:.0%} of it."
    )


def _lost(curves: _Curves, stretch: _Stretch) -> str | None:
    there = stretch.of(curves.there)
    bare = np.flatnonzero(there & stretch.of(curves.covered < LOST))
    half = len(bare) >= max(SEVERAL, MAJORITY * there.sum())
    if stretch.lost_from is None and (not half or _drift(curves, stretch)):
        return None
    begin = stretch.first + int(bare[0]) if stretch.lost_from is None else stretch.lost_from
    until = "to the end" if stretch.last == len(curves.failing) - 1 else f"to {curves.name(stretch.last)}"
    empty = (curves.pixels.result[begin : stretch.last + 1] == 0).mean() > MAJORITY
    what = "is empty" if empty else f"covers less than {LOST:.0%} of the object"
    return f"From {curves.name(begin)} {until} the result {what}, in {len(bare)} frames."


def _drift(curves: _Curves, stretch: _Stretch) -> str | None:
    smooth = curves.smooth
    lowest = stretch.first + int(smooth[stretch.first : stretch.last + 1].argmin())
    before = smooth[: stretch.first + 1]
    start = int(np.flatnonzero(before >= TOP * before.max())[-1])
    fall = smooth[start] - smooth[lowest]
    way = smooth[start : lowest + 1]
    steepest = (way[:-JUMP_FRAMES] - way[JUMP_FRAMES:]).max(initial=0)
    if len(way) <= JUMP_FRAMES or fall < FALL or steepest >= JUMP_SHARE * fall:
        return None
    return f"J falls from {smooth[start]:.2f} to {smooth[lowest]:.2f} in {lowest - start} frames, without a jump."


def _other(curves: _Curves, stretch: _Stretch) -> str:
    j, covered = (np.median(stretch.of(values)) for values in (curves.smooth, curves.covered))
    return f"J is {j:.2f}, and the result covers {covered:.0%} of the object (medians)."


_RULES: dict[str, Callable[[_Curves, _Stretch], str | None]] = {
    "identity swap": _identity_swap,
    "occlusion": _occlusion,
    "small object": _small_object,
    "leak": _leak,
    "lost": _lost,
    "drift": _drift,
    OTHER: _other,
}
