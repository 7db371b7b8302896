"""The protocol and the features of a finished evaluation, loaded again."""

import argparse
import os
import re
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
from timecycle.features.named import DTYPES
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
    recorded = str(run.content.get("device"))
    try:
        return usable_device(recorded if re.fullmatch(r"cpu|cuda(:\d{1,3})?", recorded) else "auto", "device")
    except InputError:
        return usable_device("auto", "device")


@contextmanager
def features_of(
    run: EvaluationRun, sequence: str, features: Extractor | str | None = None, device: str | None = None
) -> Iterator[FrameEncoder]:
    """A context with the features that a sequence's masks were made with.

    Args:
        run: the evaluation.
        sequence: name of the sequence.
        features: the callable, of a run that was made in Python; or MODULE:CALLABLE, of one that was made with it on
            the command line, since code that a file names is not run unless the user names it too. Other features are
            loaded as the command line did.
        device: of the features; by default the run's.

    Raises InputError if the run does not say how its features are loaded, if a file is gone, or if the features are not
    those that the run has recorded.
    """
    recorded = run.content["sequences"][sequence].get(FEATURES) or run.options.get(FEATURES)
    if features is not None and not isinstance(features, str):
        _check_same(run, recorded, identity(features))
        with evaluating(features, device, run.options["dtype"]) as extractor:
            yield extractor
        return
    chosen = _method(run, features)
    if chosen.resume is not None and not os.path.isfile(chosen.resume):
        raise InputError(f"{chosen.resume} does not exist; expected the checkpoint that {run.folder} was made with")
    _, known, encoder = choose_features(chosen, device_of(run, device), protocol_of(run))
    _check_same(run, recorded, known)
    yield encoder


def _method(run: EvaluationRun, named: str | None) -> argparse.Namespace:
    """The options that chose the features of a run; named: the callable that the user names, if any."""
    match run.content.get("method"):
        case None:
            raise InputError(
                f"{run.folder} does not say how its features are loaded, since it was made in Python or by an earlier "
                "version; expected timecycle.inspect_run with features"
            )
        case {
            "features": str(features),
            "layout": None | str() as layout,
            "part": None | str() as part,
            "dtype": str(dtype),
            "resume": None | str() as resume,
        } if dtype in DTYPES:
            pass
        case other:
            raise InputError(f"{run.folder} records {said(other)} of its features; expected what this version writes")
    if ":" in features and named is None:
        raise InputError(
            f"{run.folder} was made with --features {said(features)}, code that runs only if you name it; expected "
            f"timecycle inspect with --features {said(features)}, or timecycle evaluate with --inspect"
        )
    if named is not None and named != features:
        raise InputError(f"--features is {said(named)}; expected {said(features)}, which {run.folder} was made with")
    where = None if resume is None else Path(resume)
    return argparse.Namespace(features=features, layout=layout, part=part, dtype=dtype, resume=where)


def _check_same(run: EvaluationRun, recorded: object, known: str | None) -> None:
    """Raise InputError for features of another identity; those that cannot be identified pass."""
    if recorded and known and str(recorded).rpartition(" ")[2] != known.rpartition(" ")[2]:
        raise InputError(
            f"the features are not those that {run.folder} was made with ({said(recorded)}); expected the same weights "
            "and code"
        )
