"""J and F of features on DAVIS: masks into a results folder, and their scores."""

import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from timecycle.data.davis import Sequence, of_year, read_davis
from timecycle.data.masks import mask_reading
from timecycle.errors import InputError
from timecycle.evaluation.davis.masks import davis_protocol, write_masks
from timecycle.evaluation.davis.ranks import folder_of_rank, free_folder, on_every_rank
from timecycle.evaluation.davis.results import FEATURES, ResultsFolder
from timecycle.evaluation.davis.scores import Scores, SequenceMasks, not_in_the_means, score_masks
from timecycle.features.extractors import CallableExtractor, Extractor, evaluating
from timecycle.features.identity import identity
from timecycle.locks import owned
from timecycle.manifest import NOTES
from timecycle.propagation.protocols import Protocol


def evaluate_davis(
    features: Extractor,
    davis: Path | str,
    protocol: str | Protocol = "dino",
    *,
    image_set: str = "val",
    year: str | int = "2017",
    sequences: list[str] | None = None,
    remap_255: bool = False,
    threshold: int | None = None,
    remap: Mapping[int, int] | Iterable[str] = (),
    save_path: Path | str | None = None,
    reuse: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str = torch.float32,
    progress: bool = True,
    **overrides: Any,
) -> Scores:
    """J and F of features on DAVIS-2017, from inside a program: a notebook, or a training loop every few epochs.

    Args:
        features: any callable, normalized images [B, 3, H, W] float32 -> features [B, D, h, w], of any stride. A module
            is evaluated in eval mode, and put back.
        davis: folder in DAVIS-2017 layout.
        protocol: a preset's name, or a protocol; it says how images are resized and normalized, too.
        image_set: list in ImageSets/<year>; with save_path also one without annotations but the first, as test-dev.
        year: of 2016, any object is object 1.
        sequences: only these.
        remap_255: read 255 in annotations as object 1.
        threshold: read gray values of at least this, 1 to 255, as object 1.
        remap: ids by stored value; or ("compact",): those of each first annotation become 1, 2, ...
        save_path: keep the masks there, and go on with what an earlier call with the same features left; else nothing
            is kept. Where it holds those of other features, of which a module in training is one, or of features that
            cannot be told apart, they stay, and the masks go to <save_path>-2, -3 and so on: `Scores.folder`.
        reuse: go on with what is in save_path, whatever features it is of.
        device: where images go; without it where a module's parameters are, else the CPU.
        dtype: what features are turned into before they are compared.
        progress: whether a bar is shown.
        overrides: fields of the protocol to change, such as k=7.

    Under torch.distributed the sequences are shared among the ranks, and every rank returns the scores of all. What
    should be known of the data is in `Scores.notes`, and warned of.

    Returns:
        The scores, as the official evaluation defines them, but for ids that no mask has (`Scores.official`).

    Raises:
        InputError: data are missing or damaged, the protocol is unknown, or `features` returns something else. Under
            torch.distributed on every rank, with the reason of the first that failed.
    """
    rules = davis_protocol(protocol, **overrides)
    masks, year = mask_reading(remap_255, threshold, remap), str(year)
    every = read_davis(Path(davis), image_set, year, sequences, masks)
    unscored = [sequence.name for sequence in every if not sequence.scored]
    if unscored and save_path is None:
        raise InputError(
            f"{davis}: {unscored[0]} has an annotation of the first frame only; expected one of every frame, or a "
            "save_path, where its masks are kept"
        )
    with tempfile.TemporaryDirectory() as temporary, evaluating(features, device, dtype) as extractor:
        options = {
            **asdict(rules),
            "data": str(Path(davis).resolve()),
            "masks": asdict(of_year(masks, year)),
            "dtype": str(dtype).removeprefix("torch."),
            FEATURES: None if save_path is None else identity(features),  # which reads all weights
        }
        path = Path(temporary) if save_path is None else free_folder(Path(save_path), options, reuse)
        shares = on_every_rank(partial(_own_share, every, extractor, rules, path, options, reuse, progress))
    scores = _joined(every, shares, None if save_path is None else path)
    for note in scores.notes:
        warnings.warn(note, stacklevel=2)
    return scores


Share = tuple[Scores | None, list[str]]
"""A rank's scores, None if it has none, and what is to be warned of."""


def _own_share(
    every: list[Sequence],
    features: CallableExtractor,
    rules: Protocol,
    path: Path,
    options: dict[str, Any],
    reuse: bool,
    progress: bool,
    rank: int,
    ranks: int,
) -> Share:
    """Write the masks of a rank's sequences, and score them."""
    said: list[str] = []
    own = every[rank::ranks]
    place = folder_of_rank(path, rank, ranks)
    with owned(place, NOTES):
        folder = ResultsFolder(place, options, reuse=reuse)
        write_masks(own, features, rules, folder, say=said.append, overlays=False, progress=progress)
        to_score = [sequence for sequence in own if sequence.scored]
        found = score_masks(masks_to_score(to_score, folder.path)) if to_score else None
    return found, [line.removeprefix("warning: ") for line in said if line.startswith("warning: ")]


def _joined(every: list[Sequence], shares: list[Share], folder: Path | None) -> Scores:
    """The scores of all ranks, in the order of the sequences."""
    found = [scores for scores, _ in shares if scores]
    said = [note for _, lines in shares for note in lines] + [note for scores in found for note in scores.notes]
    objects = {name: scored for scores in found for name, scored in scores.sequences.items()}
    files = {name: names for scores in found for name, names in scores.files.items()}
    names = [sequence.name for sequence in every if sequence.scored]
    return Scores(
        {name: objects[name] for name in names},
        {name: files[name] for name in names},
        tuple(dict.fromkeys([*left_out(every), *said])),
        folder,
    )


def masks_to_score(sequences: list[Sequence], path: Path) -> list[SequenceMasks]:
    """The annotations of sequences, all of which are annotated throughout, beside the masks in a results folder."""
    return [
        SequenceMasks(s.name, list(s.annotations), [path / s.name / f"{a.stem}.png" for a in s.annotations], s.masks)
        for s in sequences
    ]


def left_out(sequences: list[Sequence]) -> list[str]:
    """A sentence on the sequences that cannot be scored, if there are any."""
    without = [sequence.name for sequence in sequences if not sequence.scored]
    return not_in_the_means(without, len(sequences), "an annotation of the first frame only")
