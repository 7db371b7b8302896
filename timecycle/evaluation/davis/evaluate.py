"""Evaluate features on DAVIS from inside a program: write masks, score them, share sequences among ranks."""

import itertools
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from timecycle.data.masks import mask_reading
from timecycle.data.sequences import Names, Sequence, of_every
from timecycle.errors import InputError
from timecycle.evaluation.davis.causes import scores_json
from timecycle.evaluation.davis.explanations import explanations
from timecycle.evaluation.davis.layout import of_year, read_davis
from timecycle.evaluation.davis.masks import write_masks
from timecycle.evaluation.davis.report import check_free, write_page
from timecycle.evaluation.davis.results import FEATURES, FRAME_STRIDE, ResultsFolder, stage_seconds
from timecycle.evaluation.davis.run import EvaluationRun
from timecycle.evaluation.davis.scores import Scores, left_out, score_written
from timecycle.features.extractors import CallableExtractor, Extractor, evaluating
from timecycle.features.identity import identity
from timecycle.locks import owned
from timecycle.manifest import NOTES
from timecycle.propagation.protocols import Protocol, mask_protocol

T = TypeVar("T")
Share = tuple[Scores | None, list[str], dict[str, Any]]
"""What a rank finds: scores of its sequences, None without scored ones; warnings; what its results.json holds."""


def evaluate_davis(
    features: Extractor,
    davis: Path | str,
    protocol: str | Protocol = "dino",
    *,
    image_set: str = "val",
    year: str | int = "2017",
    sequences: Names = None,
    frame_stride: int = 1,
    remap_255: bool = False,
    threshold: int | None = None,
    remap: Mapping[int, int] | Iterable[str] = (),
    save_path: Path | str | None = None,
    reuse: bool = False,
    overlays: bool = False,
    report: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str = torch.float32,
    progress: bool = True,
    **overrides: Any,
) -> Scores:
    """J and F on DAVIS-2017 of a feature extractor, for example in a notebook or every few epochs of training.

    Args:
        features: any callable, normalized images [B, 3, H, W] float32 -> features [B, D, h, w], of any stride (see
            `Extractor`). Modules run in eval mode; their modes are restored afterwards.
        davis: folder in DAVIS-2017 layout, see `read_davis`.
        protocol: a protocol, or the name of one of `PRESETS`; it also says how images are resized and normalized.
        image_set: list in ImageSets/<year>; one with first annotations only, such as test-dev, needs `save_path`.
        year: with 2016, every object is read as object 1.
        sequences: names of the sequences to evaluate, or a number: so many, evenly spaced in the list. All by default.
        frame_stride: take every n-th frame only: 0, n, 2n and so on, as if the videos had no others.
        remap_255: read 255 in annotations as object 1.
        threshold: read gray values of at least this, 1 to 255, as object 1.
        remap: ids by stored value, such as {128: 1}; or ("compact",): those of each first annotation become 1, 2, ...
        save_path: folder to keep masks in, and to resume from if it holds results of the same features. If it holds
            results of other (or unidentifiable) features, <save_path>-2, -3, ... is used, see `Scores.folder`.
        reuse: resume from `save_path` whatever features its results are of.
        overlays: whether to paint the masks on the frames, as images and videos in <save_path>/overlays.
        report: whether to write a page to look at, <save_path>/report.html (`Scores.page`). It also shows where the
            labels of some of the worst frames come from, which adds at most a tenth to the frames that are encoded.
        device: where images go; by default the device of the modules' parameters, else the CPU.
        dtype: what features are converted to before they are compared.
        progress: whether to show a progress bar.
        overrides: fields of the protocol to change, such as k=7.

    Returns the scores of the official evaluation, except for ids that no mask has (`Scores.official`). Notes on the
    data are in `Scores.notes` and issued as warnings. Of a set with first annotations only the masks are written, and
    there are no scores. Under torch.distributed the ranks share the sequences and each returns all scores; their masks
    are in folders of their own, <save_path>/rank0 and so on, and rank 0 writes one page over all.

    Raises InputError if arguments do not go together, data are missing or damaged, the protocol is unknown, or features
    are invalid; under torch.distributed on every rank, with the reason of the first that failed.
    """
    rules = mask_protocol(protocol, **overrides)
    masks = mask_reading(remap_255, threshold, remap)
    for option, given in (("overlays", overlays), ("report", report)):
        if given and save_path is None:
            raise InputError(f"{option} is {given!r} without save_path; expected a save_path, the folder to write to")
    every = of_every(frame_stride, read_davis(Path(davis), image_set, str(year), sequences, masks), "frame_stride")
    unscored = [sequence.name for sequence in every if not sequence.scored]
    if save_path is None and unscored:
        raise InputError(
            f"{davis}: {unscored[0]} has an annotation of the first frame only; expected one of every frame, or a "
            "save_path, where its masks are kept"
        )
    with tempfile.TemporaryDirectory() as temporary, evaluating(features, device, dtype) as extractor:
        options = asdict(rules) | {
            "data": str(Path(davis).resolve()),
            "masks": asdict(of_year(masks, str(year))),
            "dtype": str(dtype).removeprefix("torch."),
            FRAME_STRIDE: frame_stride,
            FEATURES: None if save_path is None else identity(features),  # which reads all weights
        }
        path = Path(temporary) if save_path is None else _free_folder(Path(save_path), options, reuse)
        if report:
            _on_every_rank(partial(check_free, every, path))
        share = partial(_own_share, every, extractor, rules, path, options, reuse, overlays, progress)
        shares = _on_every_rank(share)
        scores = _joined(every, shares, None if save_path is None else path)
        if report:
            page = partial(_page, every, shares, scores, path, extractor, rules, progress)
            scores = replace(scores, page=_on_every_rank(page)[0])
    for note in scores.notes:
        warnings.warn(note, stacklevel=2)
    return scores


def _own_share(
    every: list[Sequence],
    features: CallableExtractor,
    rules: Protocol,
    path: Path,
    options: dict[str, Any],
    reuse: bool,
    overlays: bool,
    progress: bool,
) -> Share:
    """Write and score the masks of this rank's sequences."""
    said: list[str] = []
    rank, ranks = _rank_and_size()
    own = every[rank::ranks]
    path = _folder_of_rank(path, rank)
    with owned(path, NOTES):
        folder = ResultsFolder(path, options, reuse=reuse)
        write_masks(own, features, rules, folder, say=said.append, overlays=overlays, progress=progress)
        found = score_written(own, path)
        folder.content.update(seconds=stage_seconds(folder.content), device=str(features.device))
        if found:
            folder.content["scores"] = scores_json(found)
        folder.save()
    content = {name: value for name, value in folder.content.items() if name != "scores"}
    return found, [line.removeprefix("warning: ") for line in said if line.startswith("warning: ")], content


def _joined(every: list[Sequence], shares: list[Share], folder: Path | None) -> Scores:
    """The scores of all ranks, in the order of the sequences, from what `_own_share` returned on each."""
    found = [scores for scores, _, _ in shares if scores]
    said = [note for _, lines, _ in shares for note in lines] + [note for scores in found for note in scores.notes]
    objects = {name: scored for scores in found for name, scored in scores.sequences.items()}
    files = {name: names for scores in found for name, names in scores.files.items()}
    names = [sequence.name for sequence in every if sequence.scored]
    return Scores(
        {name: objects[name] for name in names},
        {name: files[name] for name in names},
        tuple(dict.fromkeys([*left_out(every), *said])),
        folder,
    )


def _page(
    every: list[Sequence],
    shares: list[Share],
    scores: Scores,
    path: Path,
    features: CallableExtractor,
    rules: Protocol,
    progress: bool,
) -> Path | None:
    """Write the page of all ranks' sequences, on rank 0; its path there, None on others."""
    rank, ranks = _rank_and_size()
    if rank:
        return None
    contents = [content for _, _, content in shares]
    entries = {name: entry for content in contents for name, entry in content["sequences"].items()}
    places = {sequence.name: _folder_of_rank(path, i % ranks) for i, sequence in enumerate(every)}
    run = EvaluationRun(path, contents[0] | {"sequences": entries}, scores if scores.sequences else None, places)
    with owned(path, NOTES):
        inspected = explanations(run, every, features, rules, ranks=ranks, progress=progress)
        return write_page(run, every, inspected=inspected)


def _free_folder(path: Path, options: dict[str, Any], reuse: bool) -> Path:
    """The first of `path`, path-2, path-3, ... without results of other features; rank 0 decides for all ranks."""
    numbers = itertools.count(2)
    found = path
    while not reuse and ResultsFolder.of_others(_folder_of_rank(found, _rank_and_size()[0]), options):
        found = path.with_name(f"{path.name}-{next(numbers)}")
    chosen = [found]
    if _rank_and_size()[1] > 1:
        torch.distributed.broadcast_object_list(chosen)
    return chosen[0]


def _folder_of_rank(path: Path, rank: int) -> Path:
    """The results folder of a rank; each rank has its own results.json."""
    return path / f"rank{rank}" if _rank_and_size()[1] > 1 else path


def _on_every_rank(work: Callable[[], T]) -> list[T]:
    """Call `work` on every rank and return the results of all ranks, in order of rank.

    If any rank fails, every rank raises: a failed rank its own exception, the others InputError naming that rank.
    """
    ranks = _rank_and_size()[1]
    if ranks == 1:
        return [work()]
    result, failure = None, None
    try:
        result = work()
    except Exception as error:
        failure = error
    shares: list[Any] = [None] * ranks
    reason = f"{failure}" if isinstance(failure, InputError) else f"{type(failure).__name__}: {failure}"
    torch.distributed.all_gather_object(shares, (result, reason if failure else None))
    if failure:
        raise failure
    for number, (_, said) in enumerate(shares):
        if said:
            raise InputError(f"rank {number} of {ranks} failed: {said}")
    return [result for result, _ in shares]


def _rank_and_size() -> tuple[int, int]:
    """Rank of this process and number of processes; 0 and 1 without torch.distributed."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
