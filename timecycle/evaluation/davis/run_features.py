"""The protocol and the features of a finished evaluation, loaded again."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from timecycle.errors import InputError, said
from timecycle.evaluation.davis.results import FEATURES
from timecycle.evaluation.davis.run import EvaluationRun
from timecycle.features.extractors import Extractor, evaluating, usable_device
from timecycle.features.identity import identity
from timecycle.propagation.frames import FrameEncoder
from timecycle.propagation.options import choose_features
from timecycle.propagation.protocols import Protocol


def protocol_of(run: EvaluationRun) -> Protocol:
    """The protocol of a run. Raises InputError if results.json does not hold one."""
    try:
        stored: dict[str, Any] = {field.name: run.options[field.name] for field in fields(Protocol)}
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in stored.items()}
        return Protocol(**values)
    except KeyError as error:
        raise InputError(
            f"{run.folder} does not record {error} of its protocol; expected a run of this version"
        ) from None


def device_of(run: EvaluationRun, wanted: str | None) -> torch.device:
    """The device that is asked for; by default the run's, or what there is if that cannot be used here."""
    if wanted is not None:
        return usable_device(wanted, f"--device {wanted}")
    try:
        return usable_device(str(run.content.get("device", "auto")), "device")
    except InputError:
        return usable_device("auto", "device")


@contextmanager
def features_of(
    run: EvaluationRun, sequence: str, features: Extractor | None = None, device: str | None = None
) -> Iterator[FrameEncoder]:
    """A context with the features that a sequence's masks were made with.

    Args:
        run: the evaluation.
        sequence: name of the sequence.
        features: the callable, of a run that was made in Python; else they are loaded as the command line did.
        device: of the features; by default the run's.

    Raises InputError if the run does not say how its features are loaded, if a file is gone, or if the features are not
    those that the run has recorded.
    """
    recorded = run.content["sequences"][sequence].get(FEATURES) or run.options.get(FEATURES)
    if features is not None:
        _check_same(run, recorded, identity(features))
        with evaluating(features, device, run.options["dtype"]) as extractor:
            yield extractor
        return
    method = run.content.get("method")
    if method is None:
        raise InputError(
            f"{run.folder} does not say how its features are loaded, since it was made in Python or by an earlier "
            "version; expected timecycle.evaluation.davis.inspection.inspect_run with features"
        )
    try:
        resume = None if method["resume"] is None else Path(method["resume"])
        chosen = argparse.Namespace(
            **{name: method[name] for name in ("features", "layout", "part", "dtype")}, resume=resume
        )
    except (KeyError, TypeError):
        raise InputError(
            f"{run.folder} records {said(method)} of its features; expected what this version writes"
        ) from None
    if resume is not None and not resume.is_file():
        raise InputError(f"{resume} does not exist; expected the checkpoint that {run.folder} was made with")
    _, known, encoder = choose_features(chosen, device_of(run, device), protocol_of(run))
    _check_same(run, recorded, known)
    yield encoder


def _check_same(run: EvaluationRun, recorded: str | None, known: str | None) -> None:
    """Raise InputError for features of another identity; those that cannot be identified pass."""
    if recorded and known and recorded.rpartition(" ")[2] != known.rpartition(" ")[2]:
        raise InputError(
            f"the features are not those that {run.folder} was made with ({said(recorded)}); expected the same weights "
            "and code"
        )
