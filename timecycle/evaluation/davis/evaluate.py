"""The evaluation run: sequences through features and propagation into a results folder."""

import importlib.util
import itertools
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from timecycle.data.images import read_rgb
from timecycle.data.masks import mask_reading, object_ids, read_mask
from timecycle.errors import InputError
from timecycle.evaluation.davis.results import FEATURES, ResultsFolder, SequenceWriter
from timecycle.evaluation.davis.scores import Scores, SequenceMasks, not_in_the_means, score_masks
from timecycle.evaluation.davis.sequences import Sequence, of_year, read_davis
from timecycle.features.identity import identity
from timecycle.features.named import Extractor, Features, GivenFeatures, evaluating
from timecycle.files import hash_of
from timecycle.locks import owned
from timecycle.manifest import NOTES
from timecycle.propagation.images import prepared
from timecycle.propagation.labels import Size, first_labels, index_mask
from timecycle.propagation.propagator import LabelPropagator
from timecycle.propagation.protocols import Protocol
from timecycle.propagation.protocols import protocol as as_protocol

T = TypeVar("T")


class Stopwatch:
    """Seconds by stage. Threads work beside each other, so the stages may sum to more than the wall clock."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start


def fingerprint(path: Path) -> str:
    """SHA-256 of a file. Raises InputError if it is not there."""
    if not path.is_file():
        raise InputError(f"--resume {path} does not exist; expected a .pth.tar of the release, or .safetensors")
    return hash_of(path)


def evaluate(
    sequences: list[Sequence],
    features: Features | GivenFeatures,
    protocol: Protocol,
    folder: ResultsFolder,
    say: Callable[[str], None] = tqdm.write,
    *,
    overlays: bool = True,
    progress: bool = True,
) -> None:
    """Make the masks of every sequence that is not finished in the folder, with a progress bar.

    Raises InputError for a file that turns out to be damaged; sequences finished before it stay.
    """
    for note in (note for sequence in sequences for note in sequence.notes):
        say(f"warning: {note}")
    waiting = [sequence for sequence in sequences if not folder.finished(sequence)]
    for sequence in waiting:
        folder.check_free(sequence, overlays)
    if len(waiting) < len(sequences):
        say(f"{len(sequences) - len(waiting)} of {len(sequences)} sequences are finished in {folder.path}; going on")
    video = importlib.util.find_spec("av") is not None
    if not video and waiting and overlays:
        say("overlay videos are left out: PyAV is not installed (pip install av)")
    with tqdm(total=sum(len(s.frames) for s in waiting), unit="frame", disable=None if progress else True) as bar:
        for sequence in waiting:
            bar.set_description(sequence.name)
            start = time.perf_counter()
            watch = Stopwatch()
            writer = SequenceWriter(folder, sequence, video and overlays, pictures=overlays)
            try:
                _evaluate_sequence(sequence, features, protocol, writer, watch, bar, say)
                watch.seconds["total"] = time.perf_counter() - start
                seconds = {stage: round(value, 3) for stage, value in watch.seconds.items()}
                writer.finish({"frames": len(sequence.frames), "seconds": seconds})
            except BaseException:
                writer.discard()
                raise
            say(f"{sequence.name}: {len(sequence.frames)} frames in {seconds['total']:.1f} s")


@torch.inference_mode()
def _evaluate_sequence(
    sequence: Sequence,
    features: Features | GivenFeatures,
    protocol: Protocol,
    writer: SequenceWriter,
    watch: Stopwatch,
    bar: tqdm,
    say: Callable[[str], None],
) -> None:
    """One sequence, a frame at a time; reading runs ahead and writing behind in threads of their own."""
    annotation = read_mask(sequence.annotations[0], sequence.masks)
    propagator = LabelPropagator(protocol, l2=protocol.l2 and not features.l2)
    written: list[Future[None]] = []

    def write(index: int, rgb: np.ndarray, soft: Tensor, working: Size) -> None:
        with watch("write"):
            # The first mask of a submission is the annotation itself, not its prediction.
            mask = annotation
            if index:
                mask = index_mask(soft, labels.ids, protocol, working, (rgb.shape[0], rgb.shape[1]))
            writer.add(index, rgb, mask)

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as scribe:
        for index, (rgb, image) in enumerate(_read_ahead(sequence, protocol, reader, watch)):
            with watch("encode"):
                if isinstance(features, GivenFeatures):
                    features.frame = sequence.frames[index]
                if index == 0:
                    features.begin(image)
                feature = features(image[None])[0]
            with watch("propagate"):
                working = (image.shape[1], image.shape[2])
                if index == 0:
                    labels = first_labels(annotation, protocol, (feature.shape[1], feature.shape[2]), working)
                    _warn_of_dropped(sequence, annotation, labels.ids, say)
                    soft_labels = torch.from_numpy(labels.soft).to(feature.device)
                    soft = propagator.start(feature, soft_labels, len(sequence.frames))
                else:
                    soft = propagator.step(feature)
                soft = soft.cpu()
            written.append(scribe.submit(write, index, rgb, soft, working))
            if len(written) > 4:  # the writer may not fall behind without bound
                written.pop(0).result()
            bar.update()
        propagator.check()
        for future in written:
            future.result()


def _read_ahead(
    sequence: Sequence, protocol: Protocol, pool: ThreadPoolExecutor, watch: Stopwatch
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Frames in order as (RGB, normalised crop), decoded up to four ahead of their use."""

    def read(path: Path) -> tuple[np.ndarray, Tensor]:
        with watch("read"):
            rgb = read_rgb(path)
            return rgb, prepared(rgb, protocol)

    waiting: list[Future[tuple[np.ndarray, Tensor]]] = []
    for path in sequence.frames:
        waiting.append(pool.submit(read, path))
        if len(waiting) > 4:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()


def _warn_of_dropped(
    sequence: Sequence, annotation: np.ndarray, kept: tuple[int, ...], say: Callable[[str], None]
) -> None:
    """Say which annotated objects are too small to be carried, and when none is left."""
    for lost in sorted(set(object_ids(annotation)) - set(kept)):
        say(f"warning: {sequence.name}: object {lost} is dropped, being too small for the protocol")
    if not set(kept) - {0}:
        say(f"warning: {sequence.name}: {sequence.annotations[0]} holds no object; all its masks are background")


def masks_to_score(sequences: list[Sequence], path: Path) -> list[SequenceMasks]:
    """The annotations of sequences, all of which are annotated throughout, beside the masks in a results folder."""
    return [
        SequenceMasks(s.name, list(s.annotations), [path / s.name / f"{a.stem}.png" for a in s.annotations], s.masks)
        for s in sequences
    ]


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
        features: any callable, normalised images [B, 3, H, W] float32 -> features [B, D, h, w], of any stride. A module
            is evaluated in eval mode, and put back.
        davis: folder in DAVIS-2017 layout.
        protocol: a preset's name, or a protocol; it says how images are resized and normalised, too.
        image_set: list in ImageSets/<year>; with save_path also one without annotations but the first, as test-dev.
        year: of 2016, any object is object 1.
        sequences: only these.
        remap_255: read 255 in annotations as object 1.
        threshold: read grey values of at least this, 1 to 255, as object 1.
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
        The scores, as the official evaluation defines them, but for ids that nobody has (`Scores.official`).

    Raises:
        InputError: data are missing or damaged, the protocol is unknown, or `features` returns something else. Under
            torch.distributed on every rank, with the reason of the first that failed.
    """
    rules = as_protocol(protocol, **overrides)
    masks, year = mask_reading(remap_255, threshold, remap), str(year)
    every = read_davis(Path(davis), image_set, year, sequences, masks)
    scored = [sequence for sequence in every if sequence.scored]
    if len(scored) < len(every) and save_path is None:
        unscored = next(sequence.name for sequence in every if not sequence.scored)
        raise InputError(
            f"{davis}: {unscored} has an annotation of the first frame only; expected one of every frame, or a "
            "save_path, where its masks are kept"
        )
    notes = left_out(every)
    with tempfile.TemporaryDirectory() as temporary, evaluating(features, device, dtype) as given:
        options = {
            **asdict(rules),
            "data": str(Path(davis).resolve()),
            "masks": asdict(of_year(masks, year)),
            "dtype": str(dtype).removeprefix("torch."),
            FEATURES: None if save_path is None else identity(features),  # all weights are read for it
        }
        path = Path(temporary) if save_path is None else _free_folder(Path(save_path), options, reuse)

        def work(rank: int, ranks: int) -> tuple[Scores | None, list[str]]:
            said: list[str] = []
            own = every[rank::ranks]
            place = _of_rank(path, rank, ranks)
            with owned(place, NOTES):
                folder = ResultsFolder(place, options, reuse=reuse)
                evaluate(own, given, rules, folder, say=said.append, overlays=False, progress=progress)
                to_score = [sequence for sequence in own if sequence.scored]
                found = score_masks(masks_to_score(to_score, folder.path)) if to_score else None
            return found, [line.removeprefix("warning: ") for line in said if line.startswith("warning: ")]

        shares = on_every_rank(work)
    found = [scores for scores, _ in shares if scores]
    said = [note for _, lines in shares for note in lines] + [note for scores in found for note in scores.notes]
    notes = list(dict.fromkeys([*notes, *said]))
    for note in notes:
        warnings.warn(note, stacklevel=2)
    together = {name: objects for scores in found for name, objects in scores.sequences.items()}
    files = {name: names for scores in found for name, names in scores.files.items()}
    return Scores(
        {sequence.name: together[sequence.name] for sequence in scored},
        {sequence.name: files[sequence.name] for sequence in scored},
        tuple(notes),
        None if save_path is None else path,
    )


def left_out(sequences: list[Sequence]) -> list[str]:
    """A sentence on the sequences that cannot be scored, if there are any."""
    without = [sequence.name for sequence in sequences if not sequence.scored]
    return not_in_the_means(without, len(sequences), "an annotation of the first frame only")


def _free_folder(path: Path, options: dict[str, Any], reuse: bool) -> Path:
    """`path`, or the first of path-2, path-3 and so on that holds no results of other features; of the first rank."""
    numbers = itertools.count(2)
    found = path
    while not reuse and ResultsFolder.of_others(_of_rank(found, *_rank()), options):
        found = path.with_name(f"{path.name}-{next(numbers)}")
    chosen = [found]
    if _rank()[1] > 1:
        torch.distributed.broadcast_object_list(chosen)
    return chosen[0]


def _of_rank(path: Path, rank: int, ranks: int) -> Path:
    """Where a rank writes: each a results.json of its own."""
    return path / f"rank{rank}" if ranks > 1 else path


def on_every_rank(work: Callable[[int, int], T]) -> list[T]:
    """What `work(rank, ranks)` returns on each rank, on all of them.

    Raises InputError on every rank if one failed with an exception, naming it and its reason; its own if there is one.
    """
    rank, ranks = _rank()
    if ranks == 1:
        return [work(0, 1)]
    result, failure = None, None
    try:
        result = work(rank, ranks)
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


def _rank() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
