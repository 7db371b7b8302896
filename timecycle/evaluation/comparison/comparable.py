"""Which evaluations may be compared: those that differ in nothing but the features. Does not import torch."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from timecycle.errors import InputError, listing, said
from timecycle.evaluation.davis.results import FEATURES, FRAME_STRIDE, stage_seconds
from timecycle.evaluation.davis.run import EvaluationRun
from timecycle.evaluation.davis.tables import Scores

FREE = (FEATURES, "dtype", "layout", "part", "data", "name")
"""Options of a results folder that may differ. All others but READING and FRAME_STRIDE are fields of the protocol."""
READING = "masks"
"""The option that says how annotations are read."""
ALL = "protocol"
"""Stands for every field of the protocol in `across`."""
NONE = "not recorded"
CALLED = {"name": "protocol", "resume": "checkpoint", "total": "seconds"}
"""Names in results.json -> names shown."""


def comparable(
    runs: Sequence[EvaluationRun], names: Sequence[str], across: Collection[str] = ()
) -> dict[str, tuple[str, ...]]:
    """Check that runs may be compared, and tell what else differs between them.

    Args:
        runs: at least two.
        names: what they are called in messages.
        across: fields of the protocol that may differ; "protocol" stands for all.

    Returns what differs, by name, as a text for each run: features, dtype, checkpoint, device, versions, and the fields
    of `across`.

    Raises InputError, naming what differs and both values, if a field of the protocol (which includes the size of the
    images), the reading of annotations or the frame stride differs. `check_same_frames` checks the frames.
    """
    options = [run.options for run in runs]
    fields = list(
        dict.fromkeys(name for each in options for name in each if name not in (*FREE, READING, FRAME_STRIDE))
    )
    for name in across:
        if name not in (*fields, ALL):
            raise InputError(
                f"--across {said(name)} is no field of the protocol; expected {ALL}, or some of {', '.join(fields)}"
            )
    for other, called in zip(options[1:], names[1:], strict=True):
        differing = [name for name in fields if other.get(name, NONE) != options[0].get(name, NONE)]
        if refused := [name for name in differing if name not in across and ALL not in across]:
            pairs = (f"{name} {_text(options[0], name)} and {_text(other, name)}" for name in refused)
            both = [_text(each, "name") for each in (options[0], other)]
            called_so = f", {both[0]} and {both[1]}" if both[0] != both[1] else ""
            raise InputError(
                f"{names[0]} and {called} are of different protocols{called_so} ({listing(pairs)}); expected the same "
                f"one, or --across {' '.join(refused) if len(refused) <= 3 else ALL} to compare them nevertheless"
            )
        strides = [each.get(FRAME_STRIDE, 1) for each in (options[0], other)]
        if strides[0] != strides[1]:
            raise InputError(
                f"{names[0]} and {called} take other frames of the videos (frame stride {said(strides[0])} and "
                f"{said(strides[1])}); expected the same ones"
            )
        if other.get(READING) != options[0].get(READING):
            raise InputError(
                f"{names[0]} and {called} read annotations in different ways ({_reading(options[0])} and "
                f"{_reading(other)}); expected the same options for masks"
            )
    return _differing(runs, fields)


def _differing(runs: Sequence[EvaluationRun], fields: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What differs between the runs, a text for each."""
    options, versions = [run.options for run in runs], [run.content["versions"] for run in runs]
    tables: list[tuple[list[dict[str, Any]], Sequence[str]]] = [
        (options, ["name", *fields, *FREE]),
        ([_table(run, "method") for run in runs], ["resume"]),
        ([run.content for run in runs], ["device"]),
        (versions, list(dict.fromkeys(name for each in versions for name in each))),
        ([stage_seconds(run.content) for run in runs], ["total"]),
    ]
    found = {}
    for contents, names in tables:
        for name in names:
            values = [each.get(name, NONE) for each in contents]
            if any(value != values[0] for value in values):
                found[CALLED.get(name, name)] = tuple(_text(each, name) for each in contents)
    return found


def check_same_frames(scores: Sequence[Scores], names: Sequence[str]) -> None:
    """Check that scores are of the same sequences, frames and annotations.

    Raises InputError, naming what differs, if they are not. Annotations are compared by the objects' pixels in each
    frame, if both know them.
    """
    first = scores[0]
    for other, called in zip(scores[1:], names[1:], strict=True):
        for one, two, name in ((first, other, called), (other, first, names[0])):
            if missing := [sequence for sequence in one.sequences if sequence not in two.sequences]:
                shared = [sequence for sequence in first.sequences if sequence in other.sequences]
                hint = f", or --sequences with those that all have: {listing(shared)}" if shared else ""
                raise InputError(f"{name} lacks {listing(map(said, missing))}; expected the same sequences{hint}")
        for sequence in first.sequences:
            pair = f"{names[0]} and {called} differ in {said(sequence)}"
            _check_files(first, other, sequence, pair)
            _check_annotations(first, other, sequence, pair)


def _check_files(first: Scores, other: Scores, sequence: str, pair: str) -> None:
    files = [each.files.get(sequence, ()) for each in (first, other)]
    frames = [len(one.jaccard) for each in (first, other) for one in each.sequences[sequence][:1]]
    counts = [len(found) for found in files] if all(files) else frames
    if len(set(counts)) > 1:
        raise InputError(f"{pair}: {counts[0]} and {counts[1]} scored frames; expected the same frames")
    for one, two in zip(*files, strict=False) if all(files) else ():
        if one != two:
            raise InputError(f"{pair}: frames {said(one)} and {said(two)}; expected the same frames")


def _check_annotations(first: Scores, other: Scores, sequence: str, pair: str) -> None:
    for id_, (one, two) in enumerate(zip(first.sequences[sequence], other.sequences[sequence], strict=False), start=1):
        if one.absent != two.absent and any(each.pixels and each.pixels.truth.any() for each in (one, two)):
            raise InputError(f"{pair}: object {id_} is annotated in one of them; expected the same annotations")
        if one.pixels is None or two.pixels is None:
            continue
        if one.pixels.frame != two.pixels.frame:
            raise InputError(
                f"{pair}: annotations of {one.pixels.frame} and {two.pixels.frame} pixels; expected the same size"
            )
        counts = [len(each) for each in (one.jaccard, one.pixels.truth, two.jaccard, two.pixels.truth)]
        if len(set(counts)) > 1:
            raise InputError(f"{pair}: object {id_} has {listing(counts)} values; expected one for every frame")
        (different,) = np.nonzero(one.pixels.truth != two.pixels.truth)
        if different.size:
            frame = int(different[0])
            where = first.files.get(sequence, {frame: f"frame {frame + 1}"})[frame]
            raise InputError(
                f"{pair}: object {id_} has {one.pixels.truth[frame]} and {two.pixels.truth[frame]} pixels in the "
                f"annotation {said(where)}; expected the same annotations"
            )


def _table(run: EvaluationRun, name: str) -> dict[str, Any]:
    """A part of results.json, which users may have changed."""
    found = run.content.get(name)
    return found if isinstance(found, dict) else {}


def _text(content: dict[str, Any], name: str) -> str:
    value = content.get(name, NONE)
    if isinstance(value, float):
        value = f"{value:.1f}" if name == "total" else f"{value:g}"
    return said("none" if value is None else value)


def _reading(options: dict[str, Any]) -> str:
    """How annotations are read, in words."""
    stored = options.get(READING)
    if not isinstance(stored, dict):
        return NONE
    return said(", ".join(f"{name} {value}" for name, value in stored.items() if value) or "as stored")
