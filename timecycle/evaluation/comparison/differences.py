"""What a comparison finds: one run against the baseline, by object, sequence and class. Does not import torch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from timecycle.errors import listing
from timecycle.evaluation.comparison import attributes
from timecycle.evaluation.comparison.paired import Difference, SignTest, mean_difference, sign_test
from timecycle.evaluation.davis.tables import ObjectScores, Scores
from timecycle.evaluation.metrics import mean

MEASURES = ("J&F", "J", "F")
ATTRIBUTES = {"size": attributes.SIZES, "speed": attributes.SPEEDS, "length": attributes.LENGTHS}
"""The classes of each attribute of objects, with their limits."""


class FrameDifference(NamedTuple):
    """A frame in which two runs differ."""

    position: int
    """Among the scored frames, from 0; in the video it is one later."""
    file: str
    """Name of the annotation's file; empty if the scores do not have it."""
    difference: float
    """J&F of the run minus the baseline's."""


@dataclass(frozen=True, eq=False)
class PairedObject:
    """One object in the baseline and in another run."""

    sequence: str
    """Name of the sequence."""
    object_id: int
    """Id of the object, from 1."""
    baseline: ObjectScores
    """Its scores in the baseline."""
    other: ObjectScores
    """Its scores in the other run."""
    frame: FrameDifference
    """Where their J&F differ most."""

    @property
    def means(self) -> tuple[float, float]:
        """J&F of the baseline and of the other run."""
        return _jf_mean(self.baseline), _jf_mean(self.other)

    @property
    def difference(self) -> float:
        """J&F of the other run minus the baseline's."""
        return self.differences["J&F"]

    @cached_property
    def differences(self) -> dict[str, float]:
        """The other run minus the baseline, by measure."""
        j = self.other.jaccard_statistics.mean - self.baseline.jaccard_statistics.mean
        f = self.other.boundary_statistics.mean - self.baseline.boundary_statistics.mean
        return {"J&F": (j + f) / 2, "J": j, "F": f}

    @cached_property
    def by_frame(self) -> np.ndarray:
        """J&F of the other run minus the baseline's, float64 [scored frames]."""
        return _jf(self.other) - _jf(self.baseline)


@dataclass(frozen=True, eq=False)
class PairedSequence:
    """One sequence in the baseline and in another run: means over its objects."""

    name: str
    """Of the sequence."""
    objects: tuple[PairedObject, ...]
    """Its objects, by id."""
    frame: FrameDifference
    """Where the mean of J&F over its objects differs most."""

    @cached_property
    def differences(self) -> dict[str, float]:
        """The other run minus the baseline, by measure."""
        return {name: float(np.mean([one.differences[name] for one in self.objects])) for name in MEASURES}

    @property
    def difference(self) -> float:
        """J&F of the other run minus the baseline's."""
        return self.differences["J&F"]

    @property
    def means(self) -> tuple[float, float]:
        """J&F of the baseline and of the other run."""
        first, second = np.mean([one.means for one in self.objects], axis=0)
        return float(first), float(second)


class ClassDifference(NamedTuple):
    """The difference of J&F over the objects of one class of an attribute."""

    attribute: str
    """"size", "speed" or "length"."""
    kind: str
    """The class, such as "small"."""
    baseline: float
    """J&F of the baseline over these objects."""
    other: float
    """J&F of the other run."""
    difference: Difference
    """With its interval."""


@dataclass(frozen=True, eq=False)
class Versus:
    """One run against the baseline, over the objects that are scored in both."""

    baseline: str
    """Name of the baseline."""
    name: str
    """Name of the run."""
    measures: dict[str, Difference]
    """Difference of the means over objects with its interval, of "J&F", "J" and "F"."""
    signs: dict[str, SignTest]
    """Sign tests over sequences, of the same."""
    classes: tuple[ClassDifference, ...]
    """By class of size, speed and length; empty if pixels are not known."""
    objects: tuple[PairedObject, ...]
    """The largest absolute difference of J&F first."""
    sequences: tuple[PairedSequence, ...]
    """The largest absolute difference of J&F first."""


def compared(
    first: Scores,
    second: Scores,
    baseline: str,
    name: str,
    classes: dict[tuple[str, int], attributes.Attributes],
) -> Versus:
    """One run against the baseline.

    Args:
        first: scores of the baseline.
        second: scores of the run, of the same sequences and frames.
        baseline: name of the baseline.
        name: name of the run.
        classes: attributes of the objects; may be empty.
    """
    objects = list(_pairs(first, second))
    numbers = {sequence: number for number, sequence in enumerate(first.sequences)}
    clusters = np.array([numbers[one.sequence] for one in objects], np.int64)
    columns = {measure: np.array([one.differences[measure] for one in objects]) for measure in MEASURES}
    sequences = [
        _paired_sequence([one for one in objects if one.sequence == sequence], first)
        for sequence in dict.fromkeys(one.sequence for one in objects)
    ]

    def by_class() -> Iterator[ClassDifference]:
        for attribute, kinds in ATTRIBUTES.items():
            of = [getattr(classes[one.sequence, one.object_id], f"{attribute}_class") for one in objects]
            for kind in kinds:
                here = [index for index, found in enumerate(of) if found == kind]
                if not here:
                    continue
                baseline = mean(np.array([_jf_mean(objects[index].baseline) for index in here]))
                found = mean_difference(columns["J&F"][here], clusters[here])
                yield ClassDifference(attribute, kind, baseline, baseline + found.mean, found)

    return Versus(
        baseline,
        name,
        {measure: mean_difference(columns[measure], clusters) for measure in MEASURES},
        {measure: sign_test(np.array([each.differences[measure] for each in sequences])) for measure in MEASURES},
        tuple(by_class()) if classes else (),
        tuple(sorted(objects, key=lambda one: -abs(one.difference))),
        tuple(sorted(sequences, key=lambda one: -abs(one.difference))),
    )


def _pairs(first: Scores, second: Scores) -> Iterator[PairedObject]:
    """The objects that are scored in both."""
    for sequence, objects in first.sequences.items():
        files = first.files.get(sequence, ())
        for id_, pair in enumerate(zip(objects, second.sequences[sequence], strict=False), start=1):
            if all(map(_scored, pair)):
                difference = _jf(pair[1]) - _jf(pair[0])
                yield PairedObject(sequence, id_, *pair, _frame(difference, files))


def _paired_sequence(objects: list[PairedObject], scores: Scores) -> PairedSequence:
    name = objects[0].sequence
    difference = np.mean([one.by_frame for one in objects], axis=0)
    return PairedSequence(name, tuple(objects), _frame(difference, scores.files.get(name, ())))


def _frame(difference: np.ndarray, files: Sequence[str]) -> FrameDifference:
    """The frame of the largest absolute difference."""
    index = int(np.nanargmax(np.abs(difference)))
    return FrameDifference(index, files[index] if files else "", float(difference[index]))


def _scored(one: ObjectScores) -> bool:
    return not one.absent and not math.isnan(one.jaccard_statistics.mean + one.boundary_statistics.mean)


def missing(first: Scores, second: Scores) -> list[str]:
    """The objects that are scored in one run only."""
    found = []
    for sequence, objects in first.sequences.items():
        others = second.sequences[sequence]
        for index in range(max(len(objects), len(others))):
            there = [index < len(each) and _scored(each[index]) for each in (objects, others)]
            if there[0] != there[1]:
                found.append(f"{sequence} {index + 1}")
    return found


def left_out(first: Scores, second: Scores, name: str) -> str:
    """A sentence on the objects that are `missing` in one of the baseline and the run `name`."""
    objects = missing(first, second)
    are = "objects are" if len(objects) > 1 else "object is"
    return (
        f"{len(objects)} {are} scored in only one of the baseline and {name}, and left out of the differences: "
        f"{listing(objects)}"
    )


def has_pixels(scores: Scores) -> bool:
    """Whether the pixels of all scored objects are known."""
    return all(one.pixels for objects in scores.sequences.values() for one in objects if not one.absent)


def _jf(one: ObjectScores) -> np.ndarray:
    return (one.jaccard + one.boundary) / 2


def _jf_mean(one: ObjectScores) -> float:
    return (one.jaccard_statistics.mean + one.boundary_statistics.mean) / 2
